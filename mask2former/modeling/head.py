"""The segmentation head: pixel decoder, then Transformer decoder."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .build import build_pixel_decoder, build_transformer_decoder
from .checkpoint_legacy import upgrade_legacy_names

__all__ = ["MaskFormerHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features to class logits and mask logits of Q queries."""

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, transformer_predictor: nn.Module, num_classes: int) -> None:
        """
        Args:
            pixel_decoder: see :mod:`~mask2former.modeling.pixel_decoder`.
            transformer_predictor: see :mod:`~mask2former.modeling.transformer_decoder`.
            num_classes: K, without "no object".
        """
        super().__init__()
        # Any, not Module: what a pixel decoder has is ``forward_features``, which nn.Module does not know.
        self.pixel_decoder: Any = pixel_decoder
        self.predictor: Any = transformer_predictor
        self.num_classes = num_classes
        self.register_load_state_dict_pre_hook(_upgrade_legacy_names)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build both decoders.

        Raises:
            ValueError: if ``IN_FEATURES`` names features that the backbone does not give, or the decoder is asked for
                features that this head does not have.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the backbone gives {sorted(input_shape)}; set "
                "the backbone's OUT_FEATURES or IN_FEATURES accordingly."
            )
        in_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        if in_feature != "multi_scale_pixel_decoder":
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}, but this head feeds its decoder with "
                "'multi_scale_pixel_decoder'."
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, {name: input_shape[name] for name in head.IN_FEATURES}),
            "transformer_predictor": build_transformer_decoder(cfg, head.CONVS_DIM),
            "num_classes": head.NUM_CLASSES,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Map features by name, (N, C_i, H / stride_i, W / stride_i), to the Transformer decoder's predictions."""
        mask_features, _, multi_scale_features = self.pixel_decoder.forward_features(features)
        predictions: dict[str, Any] = self.predictor(multi_scale_features, mask_features)
        return predictions

    def forward_mixed_sizes(self, batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
        """Map the features of several batches, whose images may have different sizes, as if each were alone.

        Decoders without ``forward_mixed_sizes`` get one batch after the other.
        """
        decoders_can = hasattr(self.pixel_decoder, "forward_features_mixed_sizes") and hasattr(
            self.predictor, "forward_mixed_sizes"
        )
        if len(batches) == 1 or not decoders_can:
            return [self(features) for features in batches]
        decoded = self.pixel_decoder.forward_features_mixed_sizes(batches)
        mask_features, _, multi_scale_features = zip(*decoded, strict=True)
        predictions: list[dict[str, Any]] = self.predictor.forward_mixed_sizes(multi_scale_features, mask_features)
        return predictions


def _upgrade_legacy_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    upgrade_legacy_names(state_dict, prefix)
