"""Convolutions with the ReLU that follows, and the sum before it, in one kernel; inference in half precision."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .onednn import bfloat16_convolution_relu, takes_bfloat16
from .recording import is_inference_on_gpu

__all__ = ["convolve_relu"]


def convolve_relu(conv: nn.Conv2d, x: Tensor, added: Tensor | None = None) -> Tensor:
    """``relu(conv(x) + added)``; by autocast and without gradients by one kernel, of cuDNN or, in bfloat16, of oneDNN.

    Args:
        conv: with a bias, and padding by zeros.
        x: (N, C, H, W).
        added: (N, K, H', W'), or nothing.

    Returns:
        (N, K, H', W').
    """
    tensors, how = (x, conv.weight, conv.bias, added), (conv.stride, conv.padding, conv.dilation, conv.groups)
    if takes_bfloat16(x):
        return bfloat16_convolution_relu(*tensors, *how)  # type: ignore[arg-type]  # padding is numbers
    if torch.is_autocast_enabled("cuda") and is_inference_on_gpu(x) and _has_cudnn():
        dtype = torch.get_autocast_dtype("cuda")
        fused: Tensor = _convolve_relu(*(None if y is None else y.to(dtype) for y in tensors), *how)
        return fused
    result = conv(x)
    return F.relu_(result if added is None else result.add_(added))


@torch.compiler.assume_constant_result
def _has_cudnn() -> bool:
    is_nvidia = torch.version.cuda is not None  # AMD's GPUs call themselves CUDA devices too
    return is_nvidia and torch.backends.cudnn.is_available() and bool(torch.backends.cudnn.enabled)


# An operator, because PyTorch's own do not say which memory format they give to what records a graph.
@torch.library.custom_op("mask2former::convolve_relu", mutates_args=(), device_types="cuda")
def _convolve_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    x, weight = (y.contiguous(memory_format=torch.channels_last) for y in (x, weight))
    if added is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    added = added.contiguous(memory_format=torch.channels_last)
    return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, stride, padding, dilation, groups)


@_convolve_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, *how: Any) -> Tensor:
    return torch.empty_like(F.conv2d(x, weight, bias, *how), memory_format=torch.channels_last)
