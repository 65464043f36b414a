"""What the convolutional pixel decoders of Table 4e share: a pyramid in, a pyramid of the same strides out."""

from collections.abc import Callable, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

__all__ = ["Norm", "PyramidPixelDecoder", "conv_norm"]

Norm = str | Callable[[int], nn.Module] | None


class PyramidPixelDecoder(nn.Module):
    """Backbone features to maps of ``conv_dim`` channels at the same strides, and a per-pixel embedding of the finest.

    A subclass defines :meth:`decode`. All lists of features and of maps go from coarse to fine.
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
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            conv_dim: channels of the maps.
            mask_dim: channels of the per-pixel embedding.
            norm: normalisation after convolutions, as in Detectron2's ``get_norm``.
            common_stride: stride of the per-pixel embedding.
            num_feature_levels: maps handed to the Transformer decoder, from the coarsest on.

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
        self.conv_dim = conv_dim
        self.norm = norm
        self.num_feature_levels = num_feature_levels
        self.mask_features = self.build_mask_features(conv_dim, mask_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate a configuration and the backbone's output shape to the arguments of ``__init__``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "num_feature_levels": cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS,
        }

    @staticmethod
    def build_mask_features(conv_dim: int, mask_dim: int) -> nn.Module:
        """Build the last convolution, from the finest map to the per-pixel embedding; 3 x 3 as in MaskFormer."""
        return conv_norm(conv_dim, mask_dim, 3, norm="")

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


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: Norm,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Conv2d:
    """Build a convolution of stride 1 that keeps the size, with a bias where there is no normalisation."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=norm in ("", None),
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    weight_init.c2_xavier_fill(conv)
    return conv
