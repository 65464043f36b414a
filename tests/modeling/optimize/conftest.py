"""CUDA graphs that run the network again; ``tests/modeling/test_gpu.py`` has real ones."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor


class Network:
    """Remembers what it was given, as what is recorded does."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.memory: list[tuple[Any, Any]] = []  # pool and stream of each recording
        self.gpu = "cuda:0"
        self.last: tuple[Tensor, dict[str, Any]]

    def __call__(self, images: Tensor) -> dict[str, Any]:
        assert not torch.is_grad_enabled()
        assert not images.is_inference()
        self.calls.append(tuple(images.shape))
        self.last = images, {"logits": images.sum(dim=(1, 2, 3)), "masks": [2 * images]}
        return self.last[1]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()

    class Graph:
        def replay(self) -> None:
            images, outputs = self.recorded
            outputs["logits"].copy_(images.sum(dim=(1, 2, 3)))
            outputs["masks"][0].copy_(2 * images)

    class Stream:
        def __init__(self, device: object = None) -> None: ...
        def wait_stream(self, other: object) -> None: ...
        def wait_event(self, event: object) -> None: ...

    class Event:
        gpu = ""

        def record(self) -> None:
            self.gpu = self.gpu or network.gpu
            assert self.gpu == network.gpu

    @contextmanager
    def recording(graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        network.memory.append((pool, stream))
        yield
        assert not gc.isenabled()  # it could destroy another graph, which would be an error
        graph.recorded = network.last

    for name, fake in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "Event": Event,
        "current_stream": Stream,
        "graph": recording,
        "graph_pool_handle": object,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return network
