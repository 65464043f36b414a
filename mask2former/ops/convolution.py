"""Convolutions with the ReLU that follows, and the sum before it, in one kernel of cuDNN; inference on GPUs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .recording import is_exporting

__all__ = ["convolve_relu"]


def convolve_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``relu(conv2d(x, weight, bias) + added)``, by one kernel where :func:`_is_for_cudnn` says so.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, height, width).
        bias: (K,).
        added: (N, K, H', W'), or nothing.
        stride: as for ``torch.nn.functional.conv2d``, and so are the others.

    Returns:
        (N, K, H', W').
    """
    if not _is_for_cudnn(x):
        result = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return F.relu_(result if added is None else result.add_(added))
    dtype = torch.get_autocast_dtype("cuda")
    tensors = [None if y is None else y.to(dtype) for y in (x, weight, bias, added)]
    fused: Tensor = _convolve_relu(*tensors, stride, padding, dilation, groups)
    return fused


def _is_for_cudnn(x: Tensor) -> bool:
    """On an NVIDIA GPU, in half precision by autocast, without gradients, and not exported."""
    return (
        x.is_cuda
        and torch.is_autocast_enabled("cuda")
        and not torch.is_grad_enabled()
        and not is_exporting()
        and _has_cudnn()
    )


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
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    result = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return torch.empty_like(result, memory_format=torch.channels_last)
