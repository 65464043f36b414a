"""The feature pyramid network (Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, Section 3)."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..build import build_pixel_decoder
from .conv_norm import conv_norm
from .maskformer_pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from .pyramid import PyramidPixelDecoder

__all__ = [
    # Which is where the official release has them.
    "BasePixelDecoder",
    "FPNPixelDecoder",
    "TransformerEncoderPixelDecoder",
    "build_pixel_decoder",
]


@SEM_SEG_HEADS_REGISTRY.register()
class FPNPixelDecoder(PyramidPixelDecoder):
    """A 1 x 1 convolution of each feature, plus the coarser sum doubled in size; a 3 x 3 convolution of each sum."""

    @configurable
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of :class:`PyramidPixelDecoder`."""
        super().__init__(*args, **kwargs)
        self.lateral = nn.ModuleList(conv_norm(channels, self.conv_dim, 1, self.norm) for channels in self.in_channels)
        self.output = nn.ModuleList(conv_norm(self.conv_dim, self.conv_dim, 3, self.norm) for _ in self.in_channels)

    def decode(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        sums: list[Tensor] = []
        for feature, lateral in zip(features, self.lateral, strict=True):
            x = lateral(feature)
            if sums:
                sums.append(x + F.interpolate(sums[-1], size=x.shape[-2:], mode="nearest"))
            else:
                sums.append(self.encoder(x))
        maps = [output(x) for x, output in zip(sums, self.output, strict=True)]
        return maps[-1], maps
