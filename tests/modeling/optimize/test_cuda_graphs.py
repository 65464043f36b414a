"""What surrounds CUDA graphs, with those of ``conftest.py``."""

import functools
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.modeling.optimize.cuda_graphs import record_graphs, without_garbage_collection
from tests.modeling.optimize.conftest import Network


def test_a_graph_for_each_size(network: Network) -> None:
    run, found = record_graphs(network), []
    pictures = [torch.randn(1, 3, *size) for size in ((4, 6), (2, 4), (4, 6), (2, 4), (4, 6))]
    for number, images in enumerate(pictures):
        with torch.inference_mode(number % 2 == 0):
            found.append(run(images))
    for images, outputs in zip(pictures, found, strict=True):  # each its own, though graphs write to the same memory
        assert torch.equal(outputs["logits"], images.sum(dim=(1, 2, 3)))
        assert torch.equal(outputs["masks"][0], 2 * images)
    assert set(network.calls) == {(1, 3, 4, 6), (1, 3, 2, 4)}
    assert len(network.calls) == 8  # for each size three to warm up, and one to be recorded


def test_recordings_share_memory(network: Network) -> None:
    """PyTorch lets those of one pool have it in common that are made on one stream."""
    run = record_graphs(network)
    for height in (2, 4, 6):
        run(torch.randn(1, 3, height, 6))
    assert len(network.memory) == 3
    assert len(set(network.memory)) == 1


def test_one_network_is_recorded_at_a_time(network: Network) -> None:
    """PyTorch takes no two graphs of a process at once."""
    busy: list[None] = []

    def slow(images: Tensor) -> dict[str, Any]:
        assert not busy
        busy.append(None)
        time.sleep(0.01)
        busy.pop()
        return network(images)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: record_graphs(slow)(torch.randn(1, 3, 4, 6)), range(3)))


def test_results_may_be_written_into(network: Network) -> None:
    run, images = record_graphs(network), torch.randn(1, 3, 4, 6)
    run(images)["masks"][0].zero_()
    assert torch.equal(run(images)["masks"][0], 2 * images)


def test_images_of_inference_mode(network: Network) -> None:
    run = record_graphs(network)
    with torch.inference_mode():
        images = torch.randn(1, 3, 4, 6)
    for _ in range(2):
        assert torch.equal(run(images)["masks"][0], 2 * images)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_if_it_was(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[str] = []
    monkeypatch.setattr(gc, "isenabled", lambda: enabled)
    for name in ("enable", "disable"):
        monkeypatch.setattr(gc, name, functools.partial(switched.append, name))
    with pytest.raises(KeyError), without_garbage_collection():
        {}["an error"]
    assert switched == ["disable", "enable"][: 1 + enabled]
