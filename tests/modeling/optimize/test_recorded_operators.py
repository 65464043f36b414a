"""Operators of a CUDA graph, on the pretended GPU."""

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask2former.modeling.optimize import optimize_for_inference
from mask2former.modeling.optimize.recorded_operators import RecordedOperators
from tests.modeling.sure_model import SWIN, build
from tests.pretend_gpu import GPU, pretend_gpu


def test_what_is_read() -> None:
    given, weight = torch.ones(2, 3), torch.ones(3)
    with RecordedOperators() as operators:
        made = given * 2
        made.add_(weight[1:].sum())
    assert set(operators.tensors) == {x.untyped_storage().data_ptr() for x in (given, weight)}
    assert {x.data_ptr() for x in operators.tensors.values()} == {given.data_ptr(), weight.data_ptr()}


def test_what_is_copied_to_a_gpu_is_kept() -> None:
    """Also if it was made inside, for a graph reads it each time."""
    with pretend_gpu(), RecordedOperators() as operators:
        made = torch.ones(2)
        made.to(GPU, non_blocking=True)
    assert made.data_ptr() in operators.tensors


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.ones(2).to(GPU),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits(operator: Callable[[Tensor], object]) -> None:
    with pretend_gpu():
        x = torch.ones(2).to(GPU)
        with RecordedOperators(), pytest.raises(RuntimeError, match="waits for the GPU"):
            operator(x)


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: x[torch.zeros(1, dtype=torch.int64, device=GPU)],
        lambda x: x.to(torch.float64).copy_(x),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.ones(2).sum().item(),
        lambda x: x + torch.tensor(2.0),
    ],
)
def test_what_does_not_wait(operator: Callable[[Tensor], object]) -> None:
    with pretend_gpu():
        x = torch.ones(2).to(GPU)
        with RecordedOperators():
            operator(x)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, SWIN, {"BACKBONE.NAME": "TimmBackbone"}])
@pytest.mark.parametrize("optimised", [False, True])
def test_networks_can_be_recorded(tiny_cfg: CfgNode, changes: dict[str, object], optimised: bool) -> None:
    model = build(tiny_cfg, changes).eval()
    with pretend_gpu():
        model.to(GPU)
        network = (optimize_for_inference(model) if optimised else model).run_network
        images = torch.ones(1, 3, 64, 96).to(GPU)
        network(images)
        with RecordedOperators():
            network(images)
