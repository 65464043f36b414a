"""The baselines of the MaskFormer paper, which classify every pixel (Cheng et al., NeurIPS 2021, Section 4).

They are heads of Detectron2's meta-architecture ``SemanticSegmentor``.
"""

from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .build import build_pixel_decoder, build_transformer_decoder
from .checkpoint_compat import upgrade_before_loading
from .decoder_input import decoder_in_channels, select_decoder_input

__all__ = ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """A pixel decoder and a linear classifier of its per-pixel embedding."""

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        num_classes: int,
        loss_weight: float,
        ignore_value: int,
        common_stride: int,
    ) -> None:
        """
        Args:
            pixel_decoder: see :mod:`~mask2former.modeling.pixel_decoder`.
            predictor: what makes class logits of its output.
            num_classes: K.
            loss_weight: factor of the loss.
            ignore_value: label of pixels that do not count.
            common_stride: of the per-pixel embedding; logits are enlarged by it.
        """
        super().__init__()
        # Any, not Module: what a pixel decoder has is ``forward_features``, which nn.Module does not know.
        self.pixel_decoder: Any = pixel_decoder
        self.predictor = predictor
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.common_stride = common_stride
        self.register_load_state_dict_pre_hook(upgrade_before_loading)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build the pixel decoder and the predictor.

        Raises:
            ValueError: if ``IN_FEATURES`` names features that the backbone does not give, or the finest of them does
                not have the stride ``COMMON_STRIDE``.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        stride = min(input_shape[name].stride for name in head.IN_FEATURES)
        if stride != head.COMMON_STRIDE:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {head.COMMON_STRIDE}, but the finest of MODEL.SEM_SEG_HEAD."
                f"IN_FEATURES {list(head.IN_FEATURES)}, whose size the logits have, is at stride {stride}; make both "
                "the same."
            )
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": cls.build_predictor(cfg, input_shape),
            "num_classes": head.NUM_CLASSES,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
            "common_stride": head.COMMON_STRIDE,
        }

    @classmethod
    def build_predictor(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
        """Build what makes class logits."""
        predictor = Conv2d(cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, kernel_size=1)
        weight_init.c2_msra_fill(predictor)
        return predictor

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Classify pixels, or compute the training loss.

        Args:
            features: backbone features by name, (N, C_i, H / stride_i, W / stride_i).
            targets: for training, the class of each pixel (N, H, W) int64, or ``ignore_value``.

        Returns:
            In training None and the loss terms, otherwise logits (N, K, H', W') and no terms. H' is H, rounded up to a
            multiple of ``common_stride``.

        Raises:
            ValueError: if there are no targets in training.
        """
        logits, *auxiliary = self.layers(features)
        if not self.training:
            return self._enlarge(logits), {}
        if targets is None:
            raise ValueError(
                'per-pixel heads learn from semantic maps, but the batch has no "sem_seg"; set '
                "INPUT.DATASET_MAPPER_NAME to 'mask_former_semantic'."
            )
        losses = {"loss_sem_seg": self.loss(logits, targets)}
        for index, earlier in enumerate(auxiliary):
            losses[f"loss_sem_seg_{index}"] = self.loss(earlier, targets)
        return None, losses

    def layers(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Map backbone features to predictions, logits (N, K, H / 4, W / 4): what counts, then auxiliary ones."""
        mask_features, _, _ = self.pixel_decoder.forward_features(features)
        return [self.predictor(mask_features)]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the pixels that count, times ``loss_weight``; 0 if there is none."""
        height, width = targets.shape[-2:]
        # Where the size is no multiple of the stride, the last row and column of logits reach over the edge.
        logits = self._enlarge(logits.float())[..., :height, :width]
        total = F.cross_entropy(logits, targets, ignore_index=self.ignore_value, reduction="sum")
        # A crop may be all void, of which the mean would be NaN.
        return self.loss_weight * total / (targets != self.ignore_value).sum().clamp(min=1)

    def _enlarge(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(PerPixelBaselineHead):
    """MaskFormer's Transformer decoder with one query a class, whose masks are the logits of the class."""

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        transformer_in_feature: str,
        num_classes: int,
        loss_weight: float,
        ignore_value: int,
        common_stride: int,
    ) -> None:
        """
        Args:
            pixel_decoder: see :mod:`~mask2former.modeling.pixel_decoder`.
            predictor: a Transformer decoder that gives masks only.
            transformer_in_feature: what it attends to, see
                :func:`~mask2former.modeling.decoder_input.select_decoder_input`.
            num_classes: K.
            loss_weight: factor of the loss.
            ignore_value: label of pixels that do not count.
            common_stride: of the per-pixel embedding; logits are enlarged by it.
        """
        super().__init__(
            pixel_decoder=pixel_decoder,
            predictor=predictor,
            num_classes=num_classes,
            loss_weight=loss_weight,
            ignore_value=ignore_value,
            common_stride=common_stride,
        )
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build both decoders.

        Raises:
            ValueError: as :class:`PerPixelBaselineHead` does, and if there are not as many queries as classes.
        """
        queries, classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if queries != classes:
            raise ValueError(
                f"PerPixelBaselinePlusHead has one query for each class, but MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is "
                f"{queries} and MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}; set both to the number of classes."
            )
        return {
            **super().from_config(cfg, input_shape),
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    @classmethod
    def build_predictor(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
        """Build a Transformer decoder without classes: they are the queries' numbers."""
        return build_transformer_decoder(cfg, decoder_in_channels(cfg, input_shape), mask_classification=False)

    def layers(self, features: dict[str, Tensor]) -> list[Tensor]:
        """As in :class:`PerPixelBaselineHead`, with the predictions of earlier layers in training."""
        decoded = self.pixel_decoder.forward_features(features)
        attended = select_decoder_input(self.transformer_in_feature, features, decoded)
        predictions = self.predictor(attended, decoded[0])
        earlier = [auxiliary["pred_masks"] for auxiliary in predictions.get("aux_outputs", [])]
        return [predictions["pred_masks"], *earlier]
