"""Masked attention (Section 3.2.1 of the paper, equation 2): on CPUs, and on GPUs compiled and without gradients.

On CPUs a native operator passes over what no query may look at. On GPUs Triton shares the keys out as well.
"""

import functools

import torch
from torch import Tensor

from ._library import has_native_kernel
from ._triton import GPU_DTYPES, find_triton
from .recording import is_exporting

__all__ = ["GPU_CHANNELS", "has_fast_attention", "masked_attention"]

_CPU_CHANNELS = 32  # numbers of channels of a head are multiples of this
GPU_CHANNELS = (16, 32, 64, 128)


def has_fast_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None, num_heads: int) -> bool:
    """Whether :func:`masked_attention` takes these: not exported; on a GPU with masks, compiled and no gradients."""
    if attend is None:
        fits = not query.is_cuda
    else:
        fits = attend.dtype == torch.bool and attend.shape == (*query.shape[:2], key.shape[1])
    return (
        fits
        and query.shape[0] == key.shape[0]
        and query.dtype == key.dtype == value.dtype
        and (_has_gpu_kernel if query.is_cuda else _has_cpu_kernel)(query, key, value, num_heads)
    )


def masked_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None, num_heads: int) -> Tensor:
    """Softmax over the keys that a query may look at, and the sum of their values; softmax and sums are in float32.

    On a CPU gradients are known, but no second or forward-mode derivatives.

    Args:
        query: (N, Q, C) float32 or bfloat16, on a GPU also float16.
        key: (N, S, C).
        value: (N, S, C).
        attend: (N, Q, S) bool, True where a query may look, or None for everywhere. A query that may look nowhere gets
            NaN, and no gradient.
        num_heads: which share the channels C; each has a multiple of 32, on a GPU 16, 32, 64 or 128.

    Returns:
        (N, Q, C).
    """
    if attend is None:
        attend = query.new_ones((*query.shape[:2], key.shape[1]), dtype=torch.bool)
    operators = torch.ops.mask2former
    if query.is_cuda:
        result: Tensor = operators.triton_masked_attention(query, key, value, attend, num_heads)
    else:
        result, _ = operators.masked_attention(query, key, value, attend, num_heads)
    return result


def _has_cpu_kernel(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> bool:
    return (
        query.device.type == "cpu" and query.shape[-1] % (num_heads * _CPU_CHANNELS) == 0 and has_native_kernel(query)
    )


def _has_gpu_kernel(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> bool:
    return (
        not torch.is_grad_enabled()
        and torch.compiler.is_compiling()  # from Python, kernels of Triton take longer to launch than they save
        and not is_exporting()
        and query.dtype in GPU_DTYPES
        and query.shape[-1] in [num_heads * x for x in GPU_CHANNELS]
        and _load_triton(query.device.index)
    )


@torch.compiler.assume_constant_result
def _load_triton(device: int) -> bool:
    return _load_triton_once(device)


@functools.cache
def _load_triton_once(device: int) -> bool:
    """Registers the operator, if Triton is there and knows how to multiply in bfloat16 on this GPU."""
    if not find_triton() or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from . import triton_attention  # noqa: F401

    return True
