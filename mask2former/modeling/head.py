"""The segmentation head: pixel decoder, then Transformer decoder."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .build import build_pixel_decoder, build_transformer_decoder
from .checkpoint_compat import upgrade_before_loading
from .decoder_input import decoder_in_channels, select_decoder_input

__all__ = ["MaskFormerHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features to class logits and mask logits of Q queries."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec] | None = None,
        *,
        pixel_decoder: nn.Module,
        transformer_predictor: nn.Module,
        num_classes: int,
        transformer_in_feature: str = "multi_scale_pixel_decoder",
        loss_weight: float = 1.0,
        ignore_value: int = -1,
    ) -> None:
        """
        Args:
            input_shape: of the features that the pixel decoder takes; kept as ``in_features`` and ``common_stride`` for
                subclasses, and not read here, like the last two.
            pixel_decoder: see :mod:`~mask2former.modeling.pixel_decoder`.
            transformer_predictor: see :mod:`~mask2former.modeling.transformer_decoder`.
            num_classes: K, without "no object".
            transformer_in_feature: what the Transformer decoder attends to, see
                :func:`~mask2former.modeling.decoder_input.select_decoder_input`.
            loss_weight: of a head that computes a loss.
            ignore_value: label of pixels that do not count in it.
        """
        super().__init__()
        shapes = sorted((input_shape or {}).items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in shapes]
        self.common_stride = shapes[0][1].stride if shapes else None
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        # Any, not Module: what a pixel decoder has is ``forward_features``, which nn.Module does not know.
        self.pixel_decoder: Any = pixel_decoder
        self.predictor = transformer_predictor
        self.num_classes = num_classes
        self.transformer_in_feature = transformer_in_feature
        self.register_load_state_dict_pre_hook(upgrade_before_loading)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build both decoders.

        Raises:
            ValueError: if features are named that the backbone or the pixel decoder does not give.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "transformer_predictor": build_transformer_decoder(cfg, decoder_in_channels(cfg, input_shape)),
            "num_classes": head.NUM_CLASSES,
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(self, features: dict[str, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
        """Map features by name, (N, C_i, H / stride_i, W / stride_i), to the Transformer decoder's predictions.

        As in the official release it does so by :meth:`layers`, and ``mask`` is not read.
        """
        return self.layers(features, mask)

    def layers(self, features: dict[str, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
        """Both decoders, as :meth:`forward` runs them."""
        decoded = self.pixel_decoder.forward_features(features)
        attended = select_decoder_input(self.transformer_in_feature, features, decoded)
        predictions: dict[str, Any] = self.predictor(attended, decoded[0])
        return predictions
