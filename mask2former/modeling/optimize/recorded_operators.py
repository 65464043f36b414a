"""Which operators a CUDA graph may be made of, and what they read."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["COPYING", "INDEXING", "GpuWaitError", "RecordedOperators", "reason_to_wait"]

aten = torch.ops.aten
# The CPU has to know their results, or the sizes of those, before it can go on.
_WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
COPYING = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class GpuWaitError(RuntimeError):
    """An operator that makes the CPU wait for a GPU, found before it was recorded."""


class RecordedOperators(TorchDispatchMode):
    """Collects the tensors that are read inside of it but were not made there, one of each memory.

    What is copied from the CPU is among them wherever it was made, for a graph copies it anew each time. Those that a
    backward pass alone reads, as attributes of an autograd function's context, are not.

    Raises:
        GpuWaitError: at an operator that makes the CPU wait for a GPU. In a graph there can be none, and after an
            attempt to record it PyTorch 2.11 gives the process no more random numbers on that GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if reason := reason_to_wait(func, args, kwargs):
            raise GpuWaitError(f"the CPU waits for the GPU: {reason}")
        result = func(*args, **kwargs)
        for tensor in _tensors_in((args, kwargs)):
            memory = tensor.untyped_storage().data_ptr()
            if memory not in self._made or (func in COPYING and tensor.device.type == "cpu"):
                self.tensors.setdefault(memory, tensor)
        self._made.update(x.untyped_storage().data_ptr() for x in _tensors_in(result))
        return result


def _tensors_in(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def reason_to_wait(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Why the CPU waits for a GPU at an operator with these arguments; None if it does not."""
    if func in COPYING:
        source = args[1] if func is aten.copy_.default else args[0]
        target = args[0].device if func is aten.copy_.default else torch.device(kwargs.get("device") or source.device)
        if source.numel() == 0 or target.type == source.device.type:
            return None
        is_awaited = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        return f"copy to the {'CPU' if target.type == 'cpu' else 'GPU'}" if is_awaited else None
    if all(x.device.type == "cpu" for x in _tensors_in((args, kwargs))):
        return None
    if func in _WAITING or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        return str(func)
    if func in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
        return "index by bools"
    return None
