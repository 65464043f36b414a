"""What the convolutional pixel decoders of Table 4e share: a pyramid in, a pyramid of the same strides out."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .coarse_encoder import CoarseEncoder
from .conv_norm import Norm, conv_norm

__all__ = ["PyramidPixelDecoder"]


class PyramidPixelDecoder(nn.Module):
    """Backbone features to maps of ``conv_dim`` channels at the same strides, and a per-pixel embedding of the finest.

    A subclass defines :meth:`decode`, which passes the coarsest feature, once projected, through ``encoder``. All lists
    of features and of maps go from coarse to fine.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: Norm,
        common_stride: int,
        num_feature_levels: int,
        encoder: CoarseEncoder | None = None,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            conv_dim: channels of the maps.
            mask_dim: channels of the per-pixel embedding.
            norm: normalisation after convolutions, as in Detectron2's ``get_norm``.
            common_stride: stride of the per-pixel embedding.
            num_feature_levels: maps handed to the Transformer decoder, from the coarsest on.
            encoder: for the coarsest feature, once it has ``conv_dim`` channels; None leaves it as it is.

        Raises:
            ValueError: if no feature has the stride ``common_stride``, or there are too few features.
        """
        super().__init__()
        shapes = sorted(input_shape.items(), key=lambda item: -item[1].stride)
        strides = [shape.stride for _, shape in shapes]
        if strides[-1] != common_stride:
            raise ValueError(
                f"the per-pixel embedding has the stride {common_stride} (MODEL.SEM_SEG_HEAD.COMMON_STRIDE), but the "
                f"features of MODEL.SEM_SEG_HEAD.IN_FEATURES have {strides}; let the finest have {common_stride}."
            )
        if num_feature_levels > len(shapes):
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_FEATURE_LEVELS is {num_feature_levels}, but this pixel decoder makes "
                f"{len(shapes)} maps, one from each of MODEL.SEM_SEG_HEAD.IN_FEATURES; lower it or add features."
            )
        self.in_features = [name for name, _ in shapes]
        self.in_channels = [shape.channels for _, shape in shapes]
        self.in_strides = strides
        self.conv_dim = conv_dim
        self.norm = norm
        self.num_feature_levels = num_feature_levels
        self.encoder = encoder or CoarseEncoder(conv_dim, num_layers=0)
        self.mask_features = conv_norm(conv_dim, mask_dim, 3, norm="")  # 3 x 3 as in MaskFormer

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate a configuration and the backbone's output shape to the arguments of ``__init__``."""
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "num_feature_levels": mask_former.NUM_FEATURE_LEVELS,
            "encoder": CoarseEncoder(
                head.CONVS_DIM,
                num_layers=head.TRANSFORMER_ENC_LAYERS,
                num_heads=mask_former.NHEADS,
                dim_feedforward=mask_former.DIM_FEEDFORWARD,
                dropout=mask_former.DROPOUT,
                pre_norm=mask_former.PRE_NORM,
            ),
        }

    def decode(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode backbone features.

        Returns:
            What ``mask_features`` takes, at the finest stride, and the maps (N, conv_dim, H_l, W_l).
        """
        raise NotImplementedError

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode backbone features.

        Args:
            features: backbone features by name, (N, C_i, H / stride_i, W / stride_i).

        Returns:
            The per-pixel embedding (N, mask_dim, H / 4, W / 4), the coarsest map, and the ``num_feature_levels``
            coarsest maps (N, conv_dim, H_l, W_l), coarse to fine.
        """
        finest, maps = self.decode([features[name] for name in self.in_features])
        return self.mask_features(finest), maps[0], maps[: self.num_feature_levels]
