"""Counts what a step of training gives a GPU to do, on machines without one too.

The launches on a GPU are its kernels and copies; on a CPU they are the operators that would be on a GPU, all but views
and allocations. Kernels are somewhat more, for one operator may need several.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from mask2former.modeling import attention, criterion, matcher, point_sampling
from mask2former.modeling.optimize import layers
from mask2former.ops import linear, winograd

# Operators that give a GPU nothing to do.
NO_KERNEL = {
    "alias", "as_strided", "contiguous", "detach", "expand", "expand_as", "flatten", "lift_fresh", "mT", "narrow",
    "numpy_T", "permute", "promote_types", "reshape", "resolve_conj", "resolve_neg", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "to", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
    "_reshape_alias", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "resize_",
}  # fmt: skip


def record(device: str) -> profile:
    """What runs inside of it, for :func:`count_launches`."""
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])])


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Compare all layers at once, and compute by PyTorch's operators where a GPU does, both of which a CPU does not."""
    with ExitStack() as stack:
        for module in (criterion, matcher):
            stack.enter_context(mock.patch.object(module, "group_layers", lambda count, *_: [slice(0, count)]))
        for module in (layers, linear, winograd):
            stack.enter_context(mock.patch.object(module, "has_native_float32", return_value=False))
        stack.enter_context(mock.patch.object(attention, "has_fast_attention", return_value=False))
        stack.enter_context(mock.patch.object(point_sampling, "has_native_points", return_value=False))
        yield


def count_launches(recorded: profile) -> int:
    """Kernels and copies; on a CPU operators that would be."""
    return sum(launches(event) for event in recorded.events() if event.cpu_parent is None)


def launches(event: Any) -> int:
    """Those of an event and of the ones below it."""
    below = sum(map(launches, event.cpu_children))
    if event.kernels or below:
        return len(event.kernels) + below
    library, _, name = event.name.partition("::")
    return int(library in ("aten", "mask2former") and name not in NO_KERNEL and not torch.cuda.is_available())
