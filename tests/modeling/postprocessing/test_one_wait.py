"""Computations that wait for the device together."""

import pytest
import torch
from torch import Tensor

from mask2former.modeling.postprocessing.one_wait import Steps, finish
from tests.pretend_gpu import GPU, pretend_gpu


def _echo(*tensors: Tensor) -> Steps[list[Tensor]]:
    known = yield tensors
    return known


TENSORS = [
    torch.tensor([True, False, True]),  # what follows begins in the middle of its type
    torch.arange(6).view(2, 3).T + 2**60,
    torch.tensor(0.1),
    torch.zeros(0, 4, dtype=torch.float64),
    torch.tensor([[1.5, torch.inf]], dtype=torch.bfloat16),
]


def test_one_copy_brings_all_as_they_are() -> None:
    with pretend_gpu() as waits:
        there = [x.to(GPU) for x in TENSORS]
        waits.clear()
        first, nothing, second = finish(_echo(*there[:2]), _echo(), _echo(*there[2:]))
        assert waits == {"copy to the CPU": 1}
    assert nothing == []
    for found, wanted in zip([*first, *second], TENSORS, strict=True):
        assert (found.device.type, found.dtype, found.shape) == ("cpu", wanted.dtype, wanted.shape)
        assert torch.equal(found, wanted)


def test_on_the_cpu_nothing_is_copied() -> None:
    (found,) = finish(_echo(*TENSORS))
    assert all(x is y for x, y in zip(found, TENSORS, strict=True))
    assert finish() == []


def test_a_second_question_is_an_error() -> None:
    def ask_twice() -> Steps[None]:
        yield ()
        yield ()

    with pytest.raises(RuntimeError, match="must yield once"):
        finish(ask_twice())
