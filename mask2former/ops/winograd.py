"""Convolutions of 3x3 pixels in float32 on CPUs, with a quarter of the multiplications.

By Winograd's algorithm F(4x4, 3x3): Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
Rounding errors are about those of a direct convolution.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .linear import has_native_float32
from .onednn import has_onednn
from .recording import is_recording

__all__ = ["conv2d", "takes_convolution", "transform_weight", "winograd_conv2d"]

_CHANNELS = 16  # numbers of channels are multiples of this
# For fewer pixels than these, transforming the weights takes longer than it saves.
_FEW_PIXELS = 1024
# Where the native operator evaluates polynomials; it has the other transforms, that of pixels and that of the result.
_A, _B = 3 / 4, 3 / 2


def takes_convolution(conv: nn.Conv2d) -> bool:
    """Whether the native operators can do what ``conv`` does, if its class convolves as ``nn.Conv2d``."""
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
        weight: (K, C, 3, 3) float32, C and K multiples of 16.

    Returns:
        (36, K, C) float32.

    Raises:
        ValueError: for another shape.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or not _has_channels(*weight.shape[:2]):
        raise ValueError(f"expected weights (K, C, 3, 3), K and C multiples of {_CHANNELS}, not {tuple(weight.shape)}.")
    outputs, inputs = weight.shape[:2]
    return (_weight_transform() @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, outputs, inputs)


def _weight_transform() -> Tensor:
    """(36, 9): the matrix G for rows and for columns of pixels.

    A row's polynomial at 0, a, -a, b, -b and infinity, over what that of the pixels is there.
    """
    rows = [[1 / (_A * _B) ** 2, 0.0, 0.0]]
    for point, other in ((_A, _B), (-_A, _B), (_B, _A), (-_B, _A)):
        scale = 2 * point**2 * (point**2 - other**2)
        rows.append([1 / scale, point / scale, point**2 / scale])
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).float()


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution with a stride of 1 and a border of one zero, of weights transformed before; without gradients.

    Args:
        x: (N, C, H, W) that :func:`~mask2former.ops.linear.has_native_float32` accepts, best in ``channels_last``.
        weight: (36, K, C) of :func:`transform_weight`.
        bias: (K,) float32.

    Returns:
        (N, K, H, W) in ``channels_last``.
    """
    return _convolve(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _convolve(pixels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, H, W, C) to (N, H, W, K)."""
    bias = weight.new_zeros(weight.shape[1]) if bias is None else bias.detach()
    result: Tensor = torch.ops.mask2former.winograd_conv2d(pixels, weight, bias, onednn=has_onednn())
    return result


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with a stride of 1 and a border of one zero, by whichever algorithm is faster.

    Args:
        x: (N, C, H, W), best in ``channels_last``.
        weight: (K, C, 3, 3), C and K multiples of 16.
        bias: (K,).

    Returns:
        (N, K, H, W).
    """
    few = x.shape[0] * x.shape[2] * x.shape[3] < _FEW_PIXELS
    if is_recording() or few or not has_native_float32(x):
        return nn.functional.conv2d(x, weight, bias, padding=1)
    pixels: Tensor = _WinogradConv2d.apply(x.permute(0, 2, 3, 1), weight, bias)
    return pixels.permute(0, 3, 1, 2)


class _WinogradConv2d(torch.autograd.Function):
    """Gradients by the same algorithm, that of pixels as a convolution with the weights turned round."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(pixels, weight)
        return _convolve(pixels, transform_weight(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        pixels, weight = ctx.saved_tensors
        grad_pixels = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_pixels = _convolve(grad_output, transform_weight(weight.flip(2, 3).transpose(0, 1)))
        if ctx.needs_input_grad[1]:
            transformed = torch.ops.mask2former.winograd_weight_gradient(pixels, grad_output)  # (36, K, C)
            grad_weight = (_weight_transform().T @ transformed.flatten(1)).view(3, 3, *weight.shape[:2])
            grad_weight = grad_weight.permute(2, 3, 0, 1)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(dim=(0, 1, 2))
        return grad_pixels, grad_weight, grad_bias
