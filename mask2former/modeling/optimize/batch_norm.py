"""Batch norms that follow a convolution become part of its weights."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["fold_batch_norms"]

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def fold_batch_norms(model: nn.Module, run: Callable[[], object]) -> int:
    """Fold batch norms into the convolutions before them, in place; parameters are replaced, not written to.

    Args:
        model: in evaluation mode.
        run: runs the model once. Which norm follows which convolution is what this shows: a norm is folded if it alone
            reads what a convolution gives, whatever their names and places in the model are.

    Returns:
        How many were folded.
    """
    pairs = _find_pairs(model, run)
    for name, conv in pairs.items():
        norm: Any = model.get_submodule(name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _what_is_left(norm))
    return len(pairs)


def _what_is_left(norm: Any) -> nn.Module:
    """What stays in a folded norm's place: nothing, or the dropout and the activation that timm's norms contain."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def _find_pairs(model: nn.Module, run: Callable[[], object]) -> dict[str, nn.Conv2d]:
    """The convolution to fold each of these norms into, by the norm's name."""
    convs = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Conv2d)}
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None
    }
    recorder = _Recorder(convs)
    with torch.no_grad(), recorder, _watched(norms, recorder):
        run()
    return recorder.pairs()


class _Recorder(TorchFunctionMode):
    """Sees which convolution made a tensor, and who reads it."""

    def __init__(self, convs: dict[int, nn.Conv2d]) -> None:
        super().__init__()
        self._convs = convs  # by the id of their weight
        self._calls: Counter[nn.Module | str] = Counter()
        self._made_by: dict[int, nn.Conv2d] = {}  # by the id of what they gave
        self._reads: Counter[int] = Counter()
        self._norms: dict[str, int] = {}  # what each read
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._inside_norm = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside_norm:
            self._reads.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        if func is torch.conv2d and id(args[1]) in self._convs:
            conv = self._convs[id(args[1])]
            self._calls[conv] += 1
            self._made_by[id(result)] = conv
            self._reads[id(result)] = 0  # those so far were of another tensor, which is gone
            self._alive.append(result)
        return result

    def enter_norm(self, name: str, x: Tensor) -> None:
        """The norm of this name is about to read ``x``."""
        self._calls[name] += 1
        self._reads[id(x)] += 1
        self._norms[name] = id(x)
        self._alive.append(x)
        self._inside_norm = True

    def leave_norm(self) -> None:
        """It has read it."""
        self._inside_norm = False

    def pairs(self) -> dict[str, nn.Conv2d]:
        """Norms, by name, and the convolution that each can be folded into."""
        found = {name: (x, self._made_by[x]) for name, x in self._norms.items() if x in self._made_by}
        return {
            name: conv
            for name, (x, conv) in found.items()
            if self._reads[x] == self._calls[conv] == self._calls[name] == 1
        }


@contextmanager
def _watched(norms: dict[str, nn.Module], recorder: _Recorder) -> Iterator[None]:
    def before(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, inputs: recorder.enter_norm(name, inputs[0])

    handles = [module.register_forward_pre_hook(before(name)) for name, module in norms.items()]
    handles += [module.register_forward_hook(lambda *_: recorder.leave_norm()) for module in norms.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
