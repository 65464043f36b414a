"""Inference of feed-forward networks without large temporaries."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.recording import is_recording

__all__ = ["in_row_chunks"]

# Hidden features of so many rows fit a cache, and a block of memory that glibc keeps; fewer rows are multiplied slower.
_ROWS = 2048


def in_row_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` for a function of each row (..., C) by itself.

    On a CPU without gradients, a few rows at a time: what the function computes on the way is then never written to
    main memory. What records a graph (export, ``torch.compile``) gets all rows at once.
    """
    if torch.is_grad_enabled() or is_recording() or x.device.type != "cpu" or x.numel() <= _ROWS * x.shape[-1]:
        return function(x)
    rows = x.flatten(0, -2).split(_ROWS)
    return torch.cat([function(chunk) for chunk in rows]).unflatten(0, x.shape[:-1])
