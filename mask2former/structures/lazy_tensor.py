"""What all tensors share that are not computed before someone looks at them."""

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["LazyTensor"]

_Lazy = TypeVar("_Lazy", bound="LazyTensor")


class LazyTensor(Tensor):
    """To every function and method of tensors, the whole tensor of :meth:`full`, computed anew for each.

    Its shape, type and device are known without. Subclasses keep what it is computed from, make themselves by
    :meth:`describe`, and say in methods of their own what else can be had without the whole.
    """

    @classmethod
    def describe(cls: type[_Lazy], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Lazy:
        """A tensor without values."""
        described: _Lazy = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        return described

    def full(self) -> Tensor:
        """Compute the values, an ordinary tensor."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DESCRIPTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs or {})
        args, kwargs = tree_map_only(LazyTensor, lambda lazy: lazy.full(), (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(LazyTensor, lambda lazy: lazy.full(), (args, kwargs or {}))
        return func(*args, **kwargs)


# What can be said of values that are not there.
_DESCRIPTIONS = {
    Tensor.__len__,
    Tensor.size,
    Tensor.dim,
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device")),
}
