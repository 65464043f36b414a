"""The bidirectional feature pyramid network (Tan et al., EfficientDet, CVPR 2020, Section 3)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .conv_norm import Norm, conv_norm
from .pyramid import PyramidPixelDecoder

__all__ = ["BiFPNLayer", "BiFPNPixelDecoder", "Fusion"]


class Fusion(nn.Module):
    """Weighted sum of maps of one size, then swish, a depthwise separable convolution and normalisation.

    The sum is the paper's fast normalised fusion: ``sum_i w_i x_i / (eps + sum_i w_i)`` with learnt ``w_i >= 0``.

    Args:
        channels: of all maps.
        num_inputs: how many there are.
        norm: normalisation after the convolution.
        eps: keeps the division safe.
    """

    def __init__(self, channels: int, num_inputs: int, norm: Norm, eps: float = 1e-4) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1)
        self.norm = get_norm(norm, channels) or nn.Identity()
        self.eps = eps

    def forward(self, *maps: Tensor) -> Tensor:
        """Fuse maps (N, C, H, W)."""
        weights = self.weights.relu()
        weights = weights / (weights.sum() + self.eps)
        fused = sum((weight * x for weight, x in zip(weights[1:], maps[1:], strict=True)), start=weights[0] * maps[0])
        return self.norm(self.pointwise(self.depthwise(F.silu(fused))))


class BiFPNLayer(nn.Module):
    """One pass down the pyramid and one up it (Figure 2d there).

    Args:
        channels: of all maps.
        num_levels: of the pyramid, at least 2.
        norm: see :class:`Fusion`.
    """

    def __init__(self, channels: int, num_levels: int, norm: Norm) -> None:
        super().__init__()
        # Down to the finest but one; the finest is reached by the last of them, and is an output already.
        self.top_down = nn.ModuleList(Fusion(channels, 2, norm) for _ in range(num_levels - 1))
        # Up again: the input, the map of the way down, and the finer output; the coarsest has no map of the way down.
        self.bottom_up = nn.ModuleList(
            Fusion(channels, 2 if level == num_levels - 1 else 3, norm) for level in range(1, num_levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map L maps (N, C, H_l, W_l), coarse to fine, to L maps of the same sizes."""
        down = [maps[0]]
        for x, fuse in zip(maps[1:], self.top_down, strict=True):
            down.append(fuse(x, F.interpolate(down[-1], size=x.shape[-2:], mode="nearest")))
        up = [down[-1]]
        for level, fuse in zip(range(len(maps) - 2, -1, -1), self.bottom_up, strict=True):
            finer = F.max_pool2d(up[-1], kernel_size=3, stride=2, padding=1)
            inputs = [maps[level], finer] if level == 0 else [maps[level], down[level], finer]
            up.append(fuse(*inputs))
        return up[::-1]


@SEM_SEG_HEADS_REGISTRY.register()
class BiFPNPixelDecoder(PyramidPixelDecoder):
    """Several bidirectional passes over the projected features."""

    @configurable
    def __init__(self, *args: Any, num_layers: int, **kwargs: Any) -> None:
        """
        Args:
            args: of :class:`PyramidPixelDecoder`.
            num_layers: passes.
            kwargs: of :class:`PyramidPixelDecoder`.

        Raises:
            ValueError: if there are no two features to fuse, one's stride is not twice that of the next, or there is no
                layer.
        """
        super().__init__(*args, **kwargs)
        if num_layers < 1 or len(self.in_channels) < 2:
            raise ValueError(
                f"BiFPN fuses at least two features in at least one layer, but MODEL.SEM_SEG_HEAD.BIFPN_LAYERS is "
                f"{num_layers} and MODEL.SEM_SEG_HEAD.IN_FEATURES names {self.in_features}."
            )
        if any(coarser != 2 * finer for coarser, finer in pairwise(self.in_strides)):
            raise ValueError(
                f"BiFPN halves a map to fuse it with the next coarser one, but the features of MODEL.SEM_SEG_HEAD."
                f"IN_FEATURES, {self.in_features}, have the strides {self.in_strides}; leave none out between them and "
                "dilate no stage, or choose another MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME."
            )
        self.lateral = nn.ModuleList(conv_norm(channels, self.conv_dim, 1, self.norm) for channels in self.in_channels)
        self.layers = nn.ModuleList(
            BiFPNLayer(self.conv_dim, len(self.in_channels), self.norm) for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return super().from_config(cfg, input_shape) | {"num_layers": cfg.MODEL.SEM_SEG_HEAD.BIFPN_LAYERS}

    def decode(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        maps = [lateral(feature) for feature, lateral in zip(features, self.lateral, strict=True)]
        maps[0] = self.encoder(maps[0])
        for layer in self.layers:
            maps = layer(maps)
        return maps[-1], maps
