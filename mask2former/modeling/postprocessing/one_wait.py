"""Computations that need the CPU in between: several of them together wait once for the device.

Such a computation is a generator. It enqueues work, yields the tensors that the CPU has to know to go on, gets them
there, and returns its result::

    def largest(x: Tensor) -> Steps[Tensor]:
        (row,) = yield (x.sum(dim=1).argmax(),)
        return x[int(row)]
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Steps", "finish"]

_Result = TypeVar("_Result")
Steps = Generator[tuple[Tensor, ...], list[Tensor], _Result]


def finish(*computations: Steps[Any]) -> list[Any]:
    """Run computations, which yield once each, with one wait for the device; returns their results."""
    asked = [next(steps) for steps in computations]
    answers = iter(_to_cpu([tensor for tensors in asked for tensor in tensors]))
    return [
        _result(steps, [next(answers) for _ in tensors]) for steps, tensors in zip(computations, asked, strict=True)
    ]


def _result(steps: Steps[_Result], answer: list[Tensor]) -> _Result:
    try:
        steps.send(answer)
    except StopIteration as end:
        result: _Result = end.value
        return result
    raise RuntimeError("a computation must yield once")


def _to_cpu(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """In one copy, whatever their types."""
    if all(x.device.type == "cpu" for x in tensors):
        return tensors
    parts = [x.contiguous().flatten().view(torch.uint8) for x in tensors]
    copies = torch.cat(parts).cpu().split([len(x) for x in parts])
    # Cloned, because a part may begin where its type cannot.
    return [copy.clone().view(x.dtype).view(x.shape) for copy, x in zip(copies, tensors, strict=True)]
