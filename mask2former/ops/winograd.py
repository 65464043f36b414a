"""Convolutions of 3x3 pixels in float32 on CPUs, with a quarter of the multiplications."""

import torch
from torch import Tensor, nn

from ._library import load_library
from .recording import is_exporting

__all__ = ["has_native_winograd", "takes_convolution", "transform_weight", "winograd_conv2d"]

_CHANNELS = 16  # numbers of channels are multiples of this
# Where the native operator evaluates polynomials; it has the other transforms, that of pixels and that of the result.
_A, _B = 3 / 4, 3 / 2


def has_native_winograd(x: Tensor) -> bool:
    """Whether :func:`winograd_conv2d` takes ``x``: float32 on a CPU, neither differentiated nor exported."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not is_exporting()
        and load_library()
    )


def takes_convolution(conv: nn.Conv2d) -> bool:
    """Whether :func:`winograd_conv2d` can do what ``conv`` does."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and _has_channels(conv.in_channels, conv.out_channels)
    )


def _has_channels(*channels: int) -> bool:
    return all(x % _CHANNELS == 0 for x in channels)


def transform_weight(weight: Tensor) -> Tensor:
    """What :func:`winograd_conv2d` needs of a convolution's weights.

    Args:
        weight: (K, C, 3, 3), C and K multiples of 16.

    Returns:
        (36, C, K) float32.

    Raises:
        ValueError: for another shape.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or not _has_channels(*weight.shape[:2]):
        raise ValueError(f"expected weights (K, C, 3, 3), K and C multiples of {_CHANNELS}, not {tuple(weight.shape)}.")
    to_points = torch.tensor(_weight_transform(), dtype=torch.float64, device=weight.device)  # (6, 3)
    transformed = torch.einsum("ip,kcpq,jq->ijck", to_points, weight.double(), to_points)
    return transformed.flatten(0, 1).float().contiguous()


def _weight_transform() -> list[list[float]]:
    """The matrix G: a row's polynomial at 0, a, -a, b, -b and infinity, over what that of the pixels is there."""
    rows = [[1 / (_A * _B) ** 2, 0.0, 0.0]]
    for point, other in ((_A, _B), (-_A, _B), (_B, _A), (-_B, _A)):
        scale = 2 * point**2 * (point**2 - other**2)
        rows.append([1 / scale, point / scale, point**2 / scale])
    return [*rows, [0.0, 0.0, 1.0]]


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution with a stride of 1 and a border of one zero, by Winograd's algorithm F(4x4, 3x3).

    See Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. Rounding errors are about
    those of a direct convolution.

    Args:
        x: (N, C, H, W) that :func:`has_native_winograd` accepts, best in ``channels_last``.
        weight: (36, C, K) of :func:`transform_weight`.
        bias: (K,) float32.

    Returns:
        (N, K, H, W) in ``channels_last``.
    """
    pixels = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    result: Tensor = torch.ops.mask2former.winograd_conv2d(pixels, weight, bias)
    return result.permute(0, 3, 1, 2)
