"""Masked attention (Section 3.2.1 of the paper, equation 2) on CPUs, which passes over what no query may look at."""

import torch
from torch import Tensor

from ._library import has_native_kernel

__all__ = ["has_native_attention", "masked_attention"]

_CHANNELS = 32  # numbers of channels of a head are multiples of this


def has_native_attention(query: Tensor, key: Tensor, attend: Tensor, num_heads: int) -> bool:
    """Whether :func:`masked_attention` takes these: on a CPU, with bool masks, without gradients, and not exported."""
    return (
        query.device.type == "cpu"
        and attend.dtype == torch.bool
        and attend.shape == (*query.shape[:2], key.shape[1])
        and query.shape[-1] % (num_heads * _CHANNELS) == 0
        and not torch.is_grad_enabled()
        and has_native_kernel(query)
    )


def masked_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, num_heads: int) -> Tensor:
    """Softmax over the keys that a query may look at, and the sum of their values; computed in float32.

    Args:
        query: (N, Q, C) float32 or bfloat16, on a CPU.
        key: (N, S, C).
        value: (N, S, C).
        attend: (N, Q, S) bool, True where a query may look. A query that may look nowhere gets NaN.
        num_heads: which share the channels C; each has a multiple of 32.

    Returns:
        (N, Q, C).
    """
    result: Tensor = torch.ops.mask2former.masked_attention(query, key, value, attend, num_heads)
    return result
