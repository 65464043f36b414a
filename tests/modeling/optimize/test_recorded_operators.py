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
        made.to(GPU, non_blocking=True).to(torch.float64)
    assert list(operators.tensors) == [made.data_ptr()]


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense"),
        (lambda x: bool(x.any()), "aten._local_scalar_dense"),
        (lambda x: x.nonzero(), "aten.nonzero"),
        (lambda x: x.unique(), "aten._unique2"),
        (lambda x: x.unique(dim=0), "aten.unique_dim"),
        (lambda x: x.unique_consecutive(), "aten.unique_consecutive"),
        (lambda x: x.long().bincount(), "aten.bincount"),
        (lambda x: x.masked_select(x > 0), "aten.masked_select"),
        (lambda x: x.repeat_interleave(x.long()), "aten.repeat_interleave"),
        (lambda x: x[x > 0], "index by bools"),
        (lambda x: x[torch.ones(2, dtype=torch.bool)], "index by bools"),
        (lambda x: torch.ops.aten.index(x, [x.to(torch.uint8)]), "index by bools"),
        (lambda x: x.index_put((x > 0,), x), "index by bools"),
        (lambda x: x.index_put_((x > 0,), x), "index by bools"),
        (lambda x: torch.ops.aten._index_put_impl_(x, [x > 0], x), "index by bools"),
        (lambda x: x.cpu(), "copy to the CPU"),
        (lambda x: torch.ones(2).to(GPU), "copy to the GPU"),
        (lambda x: x.copy_(torch.ones(2)), "copy to the GPU"),
        (lambda x: torch.ones(2).copy_(x), "copy to the CPU"),
        (lambda x: torch.equal(x, x), "aten.equal"),
    ],
)
def test_what_waits(operator: Callable[[Tensor], object], reason: str) -> None:
    with pretend_gpu():
        x = torch.ones(2).to(GPU)
        with RecordedOperators(), pytest.raises(RuntimeError, match=f"waits for the GPU: {reason}"):
            operator(x)


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: x[torch.zeros(1, dtype=torch.int64, device=GPU)],
        lambda x: x[None, torch.zeros(1, dtype=torch.int64, device=GPU)],
        lambda x: x.expand(2, 2)[:, torch.zeros(1, dtype=torch.int64, device=GPU)],
        lambda x: x.repeat_interleave(x.long(), output_size=2),
        lambda x: x.to(torch.float64).copy_(x),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.copy_(torch.ones(2), non_blocking=True),
        lambda x: torch.ones(0).to(GPU),
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
