"""The feature-aligned pyramid network (Huang et al., FaPN, ICCV 2021, Section 3)."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from .conv_norm import Norm, conv_norm
from .pyramid import PyramidPixelDecoder

__all__ = ["FaPNPixelDecoder", "FeatureAlignment", "FeatureSelection"]


class FeatureSelection(nn.Module):
    """Emphasise the channels that matter before their number is reduced: ``f_s(x + u * x)``, ``u = f_m(mean of x)``.

    It takes the place of FPN's lateral convolution (Section 3.2 there).

    Args:
        in_channels: of x.
        out_channels: of the result.
        norm: normalisation of f_s.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.importance = conv_norm(in_channels, in_channels, 1, norm="")
        self.select = conv_norm(in_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        importance = self.importance(x.mean(dim=(2, 3), keepdim=True)).sigmoid()  # (N, in_channels, 1, 1)
        return self.select(x + importance * x)


class FeatureAlignment(nn.Module):
    """Move upsampled features to where the finer ones show the same thing, by a deformable convolution (Section 3.1).

    Its offsets are predicted from both, and so is the weight of each sample (modulated deformable convolution, Zhu et
    al., CVPR 2019, as in the authors' release).

    Args:
        channels: of both features.
        groups: parts of the channels that have offsets of their own.
    """

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.offset_features = conv_norm(2 * channels, channels, 1, norm="")
        # x and y, and the weight, of nine samples a group. Zeros: it starts as an ordinary convolution, halved.
        self.offsets = nn.Conv2d(channels, 3 * 9 * groups, kernel_size=3, padding=1)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)
        self.align = conv_norm(channels, channels, 3, norm="")  # holds the deformable convolution's parameters
        self.num_offsets = 2 * 9 * groups

    def forward(self, upsampled: Tensor, finer: Tensor) -> Tensor:
        """Align ``upsampled`` with ``finer``, both (N, C, H, W)."""
        predicted = self.offsets(self.offset_features(torch.cat([finer, upsampled], dim=1)))
        offsets, weights = predicted.split([self.num_offsets, predicted.shape[1] - self.num_offsets], dim=1)
        with torch.autocast(upsampled.device.type, enabled=False):  # the operator has no half precision on every device
            aligned = deform_conv2d(
                upsampled.float(),
                offsets.float(),
                self.align.weight.float(),  # which may be stored in bfloat16 for inference
                self.align.bias.float(),
                padding=(1, 1),
                mask=weights.float().sigmoid(),
            )
        return F.relu(aligned)


@SEM_SEG_HEADS_REGISTRY.register()
class FaPNPixelDecoder(PyramidPixelDecoder):
    """An FPN that selects features, and aligns the coarser sum with them before adding it."""

    @configurable
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of :class:`PyramidPixelDecoder`."""
        super().__init__(*args, **kwargs)
        coarsest, *finer = self.in_channels
        self.coarsest = conv_norm(coarsest, self.conv_dim, 1, self.norm)
        self.selection = nn.ModuleList(FeatureSelection(channels, self.conv_dim, self.norm) for channels in finer)
        self.alignment = nn.ModuleList(FeatureAlignment(self.conv_dim) for _ in finer)
        self.output = nn.ModuleList(conv_norm(self.conv_dim, self.conv_dim, 3, self.norm) for _ in self.in_channels)

    def decode(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        sums = [self.encoder(self.coarsest(features[0]))]
        for feature, select, align in zip(features[1:], self.selection, self.alignment, strict=True):
            selected = select(feature)
            upsampled = F.interpolate(sums[-1], size=selected.shape[-2:], mode="bilinear", align_corners=False)
            sums.append(selected + align(upsampled, selected))
        maps = [output(x) for x, output in zip(sums, self.output, strict=True)]
        return maps[-1], maps
