"""A network recorded as a CUDA graph for each size of images: Python has nothing left to do but to start it."""

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["record_graphs"]

_MAX_SIZES = 1 << 16
_WARM_UP = 3  # calls before one is recorded: they compile, load kernels and take memory
_RECORDING = threading.Lock()  # a process can record one graph at a time, whatever it is of

Network = Callable[[Tensor], dict[str, Any]]


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    images: Tensor
    """From which the graph reads."""
    outputs: dict[str, Any]
    """Into which it writes."""


def record_graphs(network: Network) -> Network:
    """The same network, which records a CUDA graph at the first images of a size, and plays it from then on.

    PyTorch's own graphs (``mode="reduce-overhead"``) check before every call that what was compiled still holds, which
    takes a tenth of the time that a GPU then needs. Here weights must stay where they are, and what is computed stays
    as it was recorded: switches such as ``torch.backends.cudnn.allow_tf32`` have no effect on it, and none is ever
    dropped. Results are copies, and threads and streams wait for each other.

    Args:
        network: images (N, 3, H, W) on a GPU to tensors in containers; it must not wait for the GPU.
    """
    recordings: dict[Any, _Recording] = {}
    lock = threading.Lock()
    played = torch.cuda.Event()
    # One for all recordings, no two of which play at once; PyTorch shares a pool's memory within a stream only.
    pool, stream_on = torch.cuda.graph_pool_handle(), functools.cache(torch.cuda.Stream)

    def run(images: Tensor) -> dict[str, Any]:
        # PyTorch compiles anew for another dtype of autocast; a recording would go on as it is.
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (images.shape, images.dtype, images.device, autocast)
        # Tensors made in inference mode could be written to in it alone; and leaving it turns gradients on.
        with lock, torch.cuda.device(images.device), torch.inference_mode(False), torch.no_grad():
            torch.cuda.current_stream().wait_event(played)
            if key not in recordings:
                recordings[key] = _record(network, images, pool, stream_on(images.device))
            recording = recordings[key]
            recording.images.copy_(images)
            recording.graph.replay()
            outputs: dict[str, Any] = tree_map_only(Tensor, torch.clone, recording.outputs)
            played.record()
        return outputs

    return run


def _record(network: Network, images: Tensor, pool: Any, stream: torch.cuda.Stream) -> _Recording:
    images = images.clone()
    stream.wait_stream(torch.cuda.current_stream())
    # PyTorch would compile for eight sizes, and refuse the next one.
    limits = torch._dynamo.config.patch(recompile_limit=_MAX_SIZES, accumulated_recompile_limit=_MAX_SIZES)
    with _RECORDING:
        with torch.cuda.stream(stream), limits:
            for _ in range(_WARM_UP):
                network(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            outputs = network(images)
    return _Recording(graph, images, outputs)
