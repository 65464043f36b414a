"""A network recorded as a CUDA graph for each size of images: Python has nothing left to do but to start it."""

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .recorded_operators import RecordedOperators

__all__ = ["Graphs", "Network", "record_graphs", "without_garbage_collection"]

_NO_LIMIT = 1 << 16
_WARM_UP = 3  # calls before what is compiled is recorded: they compile, load kernels and take memory
_RECORDING = threading.Lock()  # a process can record one graph at a time, whatever it is of

Network = Callable[[Tensor], dict[str, Any]]


def record_graphs(network: Network) -> Network:
    """The same network, which records a CUDA graph at the first images of a size, and plays it from then on.

    PyTorch's own graphs (``mode="reduce-overhead"``) check before every call that what was compiled still holds, which
    takes a tenth of the time that a GPU then needs. Here weights must stay where they are, and what is computed stays
    as it was recorded: switches such as ``torch.backends.cudnn.allow_tf32`` have no effect on it, and none is ever
    dropped. Results are copies, and threads and streams wait for each other.

    Args:
        network: compiled, from images (N, 3, H, W) on a GPU to tensors in containers; it must not wait for the GPU.
    """
    graphs = Graphs(network, is_compiled=True)

    def run(images: Tensor) -> dict[str, Any]:
        key = graphs.key(images)
        with graphs.lock:
            if key not in graphs:
                graphs.record(key, images)
            return graphs.play(key, images)

    return run


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    images: Tensor
    """From which the graph reads."""
    outputs: dict[str, Any]
    """Into which it writes."""
    others: list[Tensor]
    """What else it reads, such as position encodings, which may be dropped where they are kept."""


class Graphs:
    """Those of a network, for images of different sizes. Whoever uses them holds the lock.

    Args:
        network: as of :func:`record_graphs`.
        is_compiled: whether it is. Nothing is known of what is not: an operator that waits is an error.
    """

    def __init__(self, network: Network, *, is_compiled: bool) -> None:
        self.lock = threading.Lock()
        self._network = network
        self._is_compiled = is_compiled
        self._recordings: dict[Any, _Recording] = {}
        self._played = torch.cuda.Event()
        # One for all recordings, no two of which play at once; PyTorch shares a pool's memory within a stream only.
        self._pool: Any = None
        self._stream_on = functools.cache(torch.cuda.Stream)

    def __len__(self) -> int:
        return len(self._recordings)

    @staticmethod
    def key(images: Tensor) -> Any:
        """What a graph holds for."""
        # PyTorch compiles anew for another dtype of autocast; a recording would go on as it is.
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        return images.shape, images.dtype, images.device, autocast

    def __contains__(self, key: Any) -> bool:
        return key in self._recordings

    def clear(self) -> None:
        """Forget them all; those to come may be on another GPU."""
        self._recordings.clear()
        self._pool = None  # which PyTorch frees with the last recording
        self._played = torch.cuda.Event()  # one belongs to the GPU where it happened first

    def play(self, key: Any, images: Tensor) -> dict[str, Any]:
        """What the network gives, by the graph for images of this key."""
        recording = self._recordings[key]
        with _in_any_mode(images.device):
            torch.cuda.current_stream().wait_event(self._played)
            recording.images.copy_(images)
            recording.graph.replay()
            outputs: dict[str, Any] = tree_map_only(Tensor, torch.clone, recording.outputs)
            self._played.record()
        return outputs

    def record(self, key: Any, images: Tensor) -> None:
        """Make the graph for images of this key.

        Raises:
            RuntimeError: if that fails.
        """
        stream = self._stream_on(images.device)
        with _RECORDING, _in_any_mode(images.device):
            torch.cuda.current_stream().wait_event(self._played)
            images = images.clone()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._warm_up(images)
            torch.cuda.current_stream().wait_stream(stream)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            recording = torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local")
            # What is compiled makes itself what it reads.
            watch = nullcontext() if self._is_compiled else RecordedOperators()
            with without_garbage_collection(), recording, watch as operators:
                outputs = self._network(images)
        others = [] if operators is None else list(operators.tensors.values())
        self._recordings[key] = _Recording(graph, images, outputs, others)

    def _warm_up(self, images: Tensor) -> None:
        if not self._is_compiled:
            with RecordedOperators():
                self._network(images)
            return
        # PyTorch would compile for eight sizes, and refuse the next one.
        with torch._dynamo.config.patch(recompile_limit=_NO_LIMIT, accumulated_recompile_limit=_NO_LIMIT):
            for _ in range(_WARM_UP):
                self._network(images)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Lets Python free no cycles of objects: with a graph or a kernel in one, what this thread records would fail."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _in_any_mode(device: torch.device) -> Iterator[None]:
    """Lets what surrounds it be in any mode, and on a stream of its own, on which it also is after a failure."""
    # Tensors made in inference mode could be written to in it alone; and leaving it turns gradients on.
    with (
        torch.cuda.device(device),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.cuda.stream(torch.cuda.current_stream(device)),
    ):
        yield
