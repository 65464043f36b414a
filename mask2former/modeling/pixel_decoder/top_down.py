"""The top-down path of a feature pyramid (Lin et al., CVPR 2017) with the official checkpoints' names."""

from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from .conv_norm import Norm, conv_norm

__all__ = ["TopDownPath"]


class TopDownPath(nn.Module):
    """Add finer backbone features, one after the other, to an upsampled coarse map.

    Pixel decoders inherit from it, because checkpoints have its convolutions under their own name: ``adapter_i`` is
    lateral and ``layer_i`` at the output of a level, i counting backbone features from 1, the finest.

    Args:
        conv_dim: channels of every map.
        norm: normalisation of the convolutions.
        upsample_mode: "nearest" or "bilinear".
    """

    def __init__(self, *, conv_dim: int, norm: Norm, upsample_mode: str) -> None:
        super().__init__()
        self.conv_dim = conv_dim
        self.norm = norm
        self.upsample_mode = upsample_mode
        # Index and backbone feature of each level, in the order of the visits: coarse to fine.
        self.fpn_levels: list[tuple[int, str]] = []

    def add_level(self, index: int, name: str, in_channels: int) -> None:
        """Append a level that adds the backbone feature ``name`` to the maps before it."""
        self.add_module(f"adapter_{index}", conv_norm(in_channels, self.conv_dim, 1, self.norm))
        self.add_module(f"layer_{index}", self.output_conv(self.conv_dim))
        self.fpn_levels.append((index, name))

    def output_conv(self, in_channels: int) -> Conv2d:
        """Make a 3x3 convolution with normalisation and ReLU."""
        return conv_norm(in_channels, self.conv_dim, 3, self.norm, F.relu_)

    def descend(self, coarsest: Tensor, features: dict[str, Tensor]) -> list[Tensor]:
        """Go down the levels.

        Args:
            coarsest: where the path starts, (N, conv_dim, H, W).
            features: the backbone's, by name.

        Returns:
            One map (N, conv_dim, H_i, W_i) for each level, in their order.
        """
        maps = [coarsest]
        for index, name in self.fpn_levels:
            lateral = self.get_submodule(f"adapter_{index}")(features[name])
            align = {} if self.upsample_mode == "nearest" else {"align_corners": False}
            # In place, for no map is larger than the last of these.
            lateral += F.interpolate(maps[-1], size=lateral.shape[-2:], mode=self.upsample_mode, **align)
            maps.append(self.get_submodule(f"layer_{index}")(lateral))
        return maps[1:]
