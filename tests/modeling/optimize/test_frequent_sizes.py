"""Which images pass through CUDA graphs unasked, with those of ``conftest.py``."""

import logging
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.optimize import recorded_operators
from mask2former.modeling.optimize.frequent_sizes import FREQUENT, GraphsOfFrequentSizes
from mask2former.modeling.optimize.recorded_operators import RecordedOperators
from tests.modeling.optimize.conftest import Network

SMALL, LARGE = (1, 3, 2, 4), (1, 3, 4, 6)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 2))


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
    model.register_module("none", None)
    return model


@pytest.fixture
def run(_gpu: None, network: Network, model: nn.Module) -> GraphsOfFrequentSizes:
    return GraphsOfFrequentSizes(network, model)


@torch.no_grad()
def play(run: GraphsOfFrequentSizes, network: Network, shape: tuple[int, ...], times: int = 1) -> int:
    """How often the network was called for so many images."""
    before = len(network.calls)
    for _ in range(times):
        images = torch.randn(shape)
        outputs = run(images)
        assert torch.equal(outputs["logits"], images.sum(dim=(1, 2, 3)))
        assert torch.equal(outputs["masks"][0], 2 * images)
    return len(network.calls) - before


def test_a_size_that_comes_often_is_recorded(run: GraphsOfFrequentSizes, network: Network) -> None:
    for _ in range(FREQUENT - 1):
        assert play(run, network, SMALL) == play(run, network, LARGE) == 1
    assert play(run, network, SMALL) == 2  # once to warm up, and once to be recorded
    assert play(run, network, SMALL, 5) == 0
    assert play(run, network, LARGE) == 2
    assert play(run, network, LARGE, 5) == play(run, network, SMALL) == 0


def test_weights_that_moved(run: GraphsOfFrequentSizes, network: Network, model: nn.Module) -> None:
    assert play(run, network, SMALL, FREQUENT + 5) == FREQUENT + 1
    model[0].weight.data.add_(1)
    assert play(run, network, SMALL) == 0
    model[1][0].running_mean = torch.ones(2)
    assert play(run, network, SMALL, FREQUENT + 5) == FREQUENT + 1
    (before, _), (after, _) = network.memory
    assert before is not after


def test_types_have_graphs_of_their_own(
    run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(run, network, SMALL, FREQUENT)
    with torch.no_grad():
        assert run(torch.ones(SMALL, dtype=torch.float64))["logits"].dtype == torch.float64
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    assert play(run, network, SMALL) == 1


def test_what_a_graph_reads_stays(
    run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [torch.ones(1)]
    is_there = weakref.ref(kept[0])

    def read(images: Tensor) -> dict[str, Any]:
        kept[0].sum()
        return network(images)

    monkeypatch.setattr(run._graphs, "_network", read)
    play(run, network, SMALL, FREQUENT)
    kept.clear()
    assert is_there() is not None


def test_a_module_that_was_replaced(run: GraphsOfFrequentSizes, network: Network, model: nn.Module) -> None:
    play(run, network, SMALL, FREQUENT)
    model[0] = nn.Sequential(model[0])
    assert play(run, network, SMALL) == 1


def test_a_model_that_went_to_another_gpu(run: GraphsOfFrequentSizes, network: Network, model: nn.Module) -> None:
    play(run, network, SMALL, FREQUENT)
    model[0].weight.data = model[0].weight.clone()
    network.gpu = "cuda:1"
    assert play(run, network, SMALL, FREQUENT + 5) == FREQUENT + 1


@pytest.mark.parametrize("name", ["compiler.is_compiling", "cuda.is_current_stream_capturing"])
def test_other_graphs_have_the_network(
    name: str, run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(run, network, SMALL, FREQUENT)
    monkeypatch.setattr(f"torch.{name}", lambda: True)
    assert play(run, network, SMALL, 3) == 3


def test_a_model_that_went_to_the_cpu(
    run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(run, network, SMALL, FREQUENT)
    monkeypatch.setattr(Tensor, "is_cuda", False)
    assert play(run, network, SMALL, 3) == 3


def test_threads(run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    play(run, network, SMALL, FREQUENT)
    replay = torch.cuda.CUDAGraph.replay

    def slow(graph: torch.cuda.CUDAGraph) -> None:
        time.sleep(0.01)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", slow)
    with ThreadPoolExecutor(3) as threads:
        assert sum(threads.map(lambda _: play(run, network, SMALL), range(6))) == 0


def test_whoever_watches_sees_the_network(run: GraphsOfFrequentSizes, network: Network, model: nn.Module) -> None:
    play(run, network, SMALL, FREQUENT)
    with model[1][0].register_forward_hook(lambda *_: None):
        assert play(run, network, SMALL, 3) == 3
    with model[1][0].register_forward_pre_hook(lambda *_: None):
        assert play(run, network, SMALL) == 1
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert play(run, network, SMALL) == 1
    with RecordedOperators():  # as any TorchDispatchMode
        assert play(run, network, SMALL) == 1
    with model.register_forward_hook(lambda *_: None):  # which runs in any case
        assert play(run, network, SMALL) == 0


def test_gradients(run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    play(run, network, SMALL, FREQUENT)
    monkeypatch.setattr(run, "_network", lambda images: {"logits": images})
    images = torch.ones(SMALL, requires_grad=True)
    assert run(images)["logits"] is images


def test_little_memory(run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 5))
    assert play(run, network, SMALL, 2 * FREQUENT) == 2 * FREQUENT
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2, 5))
    assert play(run, network, SMALL, 3) == 2


def test_many_sizes(run: GraphsOfFrequentSizes, network: Network) -> None:
    for width in range(1, 33):
        assert play(run, network, (1, 3, 2, width), FREQUENT) == FREQUENT + 1
    assert play(run, network, (1, 3, 2, 40), 2 * FREQUENT) == 2 * FREQUENT
    assert play(run, network, (1, 3, 2, 5)) == 0


def test_a_network_that_waits_is_not_recorded(
    run: GraphsOfFrequentSizes, network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even tried."""
    monkeypatch.setattr(recorded_operators, "reason_to_wait", lambda *_: "a copy")
    play(run, network, SMALL, 2 * FREQUENT)
    assert not network.memory
    assert "(the CPU waits for the GPU: a copy)" in caplog.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "CUDA out of memory."),
        (TypeError("no dispatch"), "no dispatch"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_network_that_cannot_be_recorded(
    run: GraphsOfFrequentSizes,
    network: Network,
    error: Exception,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(key: object, images: Tensor) -> None:
        raise error

    monkeypatch.setattr(run._graphs, "record", fail)
    with caplog.at_level(logging.WARNING):
        assert play(run, network, SMALL, 2 * FREQUENT) == 2 * FREQUENT
    (message,) = (x.getMessage() for x in caplog.records)
    assert message.startswith(f"No CUDA graph could be recorded of the network ({reason}), so Python goes on")
