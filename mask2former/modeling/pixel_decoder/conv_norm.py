"""The convolution that all pixel decoders are made of."""

from collections.abc import Callable

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

__all__ = ["Norm", "conv_norm"]

# As Detectron2's ``get_norm`` takes it.
Norm = str | Callable[[int], nn.Module] | None


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
