"""Semantic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, Section 3 and Figure 3)."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .conv_norm import conv_norm
from .fpn import FPNPixelDecoder

__all__ = ["SemanticFPNPixelDecoder"]


@SEM_SEG_HEADS_REGISTRY.register()
class SemanticFPNPixelDecoder(FPNPixelDecoder):
    """An FPN whose maps are all brought to the finest stride, step by step, and added up for the per-pixel embedding.

    A step is a 3 x 3 convolution, normalisation, ReLU and bilinear upsampling by two; a map takes as many as its
    stride needs, the finest one without upsampling. The Transformer decoder reads the FPN's maps.
    """

    @configurable
    def __init__(self, *args: Any, branch_dim: int, mask_dim: int, **kwargs: Any) -> None:
        """
        Args:
            args: of :class:`FPNPixelDecoder`.
            branch_dim: channels of the steps.
            mask_dim: channels of the per-pixel embedding.
            kwargs: of :class:`FPNPixelDecoder`.
        """
        super().__init__(*args, mask_dim=mask_dim, **kwargs)
        self.mask_features = conv_norm(branch_dim, mask_dim, 3, norm="")
        # From the coarsest map on; a map of the finest stride has one step, too.
        steps = [*range(len(self.in_channels) - 1, 0, -1), 1]
        self.branches = nn.ModuleList(
            nn.ModuleList(
                conv_norm(self.conv_dim if step == 0 else branch_dim, branch_dim, 3, self.norm, F.relu)
                for step in range(count)
            )
            for count in steps
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        branch_dim = head.CONVS_DIM if head.SEMANTIC_FPN_DIM is None else head.SEMANTIC_FPN_DIM
        return super().from_config(cfg, input_shape) | {"branch_dim": branch_dim}

    def decode(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        _, maps = super().decode(features)
        sizes = [x.shape[-2:] for x in maps]
        levels = []
        for level, (x, branch) in enumerate(zip(maps, self.branches, strict=True)):
            for step, conv in enumerate(branch.children(), start=1):
                x = conv(x)
                if level + step < len(sizes):
                    x = F.interpolate(x, size=sizes[level + step], mode="bilinear", align_corners=False)
            levels.append(x)
        return sum(levels[1:], start=levels[0]), maps
