"""A GPU made of the CPU: what would fail on one for its device fails here, and what would wait for one is counted.

Tensors on the device ``GPU`` hold a tensor of the CPU each, with which their operators run. As on a GPU, they do not
mix with tensors of the CPU and do not become NumPy's. PyTorch sees the device "meta", whose autograd needs no driver.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from mask2former.modeling.optimize.recorded_operators import COPYING, INDEXING, reason_to_wait

__all__ = ["GPU", "pretend_gpu"]

GPU = torch.device("meta")

aten = torch.ops.aten


class _GpuTensor(Tensor):
    """A tensor on the device."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> "_GpuTensor":
        tensor: _GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            content.shape,
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=GPU,
        )
        tensor.content = content
        return tensor

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert a tensor of the GPU to NumPy; use Tensor.cpu() first")
        return self.cpu().numpy(force=True)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(torch.tensor(index, device=GPU) if isinstance(index, list) else index)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_on_gpu(x: object) -> bool:
    return isinstance(x, _GpuTensor)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = [x for x in tensors if _is_on_gpu(x)]
    others = [x for x in tensors if x.dim() and not _is_on_gpu(x)]
    if on_gpu and others and func not in COPYING | INDEXING:
        raise RuntimeError(f"{func} has tensors on the GPU and on the CPU: {[tuple(x.shape) for x in others]}")

    device = kwargs.get("device")
    to_gpu = bool(on_gpu) if device is None else torch.device(device) == GPU
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    result = func(*tree_map_only(_GpuTensor, lambda x: x.content, args), **_contents(kwargs))
    if not to_gpu:
        return result
    if func is aten.copy_.default:
        return args[0]
    result = tree_map_only(Tensor, lambda x: x if _is_on_gpu(x) else _GpuTensor(x), result)
    return return_and_correct_aliasing(func, args, kwargs, result) if on_gpu and device is None else result


def _contents(kwargs: dict[str, Any]) -> dict[str, Any]:
    contents: dict[str, Any] = tree_map_only(_GpuTensor, lambda x: x.content, kwargs)
    return contents


class _Counting(TorchDispatchMode):
    """Counts what the CPU waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if reason := reason_to_wait(func, args, kwargs):
            self.waits[reason] += 1
        return _run(func, args, kwargs)


@contextmanager
def pretend_gpu() -> Iterator[Counter[str]]:
    """Within it tensors can be on ``GPU``; gives the number of times that the CPU waited for it, by reason."""

    def of_cpu(device: Any) -> Any:
        return "cpu" if str(device) == "meta" else device

    def made_here(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make_and_move(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            tensor = make(data, *args, **kwargs)
            return tensor if device is None else tensor.to(device)

        return make_and_move

    enabled, dtype, autocast = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast
    with (
        # PyTorch knows no autocast for "meta", and makes tensors on it without a look at the data.
        mock.patch("torch.is_autocast_enabled", lambda device: enabled(of_cpu(device))),
        mock.patch("torch.get_autocast_dtype", lambda device: dtype(of_cpu(device))),
        mock.patch("torch.autocast", lambda device, *args, **kwargs: autocast(of_cpu(device), *args, **kwargs)),
        mock.patch("torch.tensor", made_here(torch.tensor)),
        mock.patch("torch.as_tensor", made_here(torch.as_tensor)),
        _Counting() as counting,
    ):
        yield counting.waits
