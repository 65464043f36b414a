"""Images of a size that comes often pass through a CUDA graph: for whoever knows nothing of graphs."""

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .cuda_graphs import Graphs, Network

__all__ = ["FREQUENT", "GraphsOfFrequentSizes"]

_logger = logging.getLogger(__name__)

FREQUENT = 8  # images: to record a graph takes about as long as four of them, and spares half of the time of each
_MAX_SIZES = 32  # that are recorded; each keeps memory for its results
_LEAST_FREE = 0.25  # of the GPU's memory, for a graph to be recorded: those of a network keep what one image takes


class GraphsOfFrequentSizes:
    """The same network, of which a CUDA graph is recorded for a size of images that comes often, as those of a video.

    Other sizes pass through the network as before, and so does everything where modules have hooks, gradients are
    wanted, PyTorch watches what runs (``TorchDispatchMode``, ``torch.compile``), little memory is free, or a graph
    could not be recorded. When weights move or modules are replaced, graphs are recorded anew.

    Args:
        network: images (N, 3, H, W) to tensors in containers. It must do the same with all images of a size.
        model: with the modules of the network.
    """

    def __init__(self, network: Network, model: nn.Module) -> None:
        self._network = network
        self._model = model
        self._graphs = Graphs(network, is_compiled=False)
        self._counts: Counter[Any] = Counter()
        self._addresses: list[int] = []  # of the modules that the graphs stand for, and of their weights
        self._has_failed = False

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """As ``network``. Threads may call it."""
        if images.is_cuda and not torch.is_grad_enabled() and not _is_watched():
            addresses, key = _addresses(self._model), self._graphs.key(images)
            with self._graphs.lock:
                if addresses is not None and self._find(key, images, addresses):
                    return self._graphs.play(key, images)
        return self._network(images)

    def _find(self, key: Any, images: Tensor, addresses: list[int]) -> bool:
        """Whether there is a graph for images of this key, which is recorded if they come often."""
        if addresses != self._addresses:
            self._addresses = addresses
            self._counts.clear()
            self._graphs.clear()
        self._counts[key] += 1
        if key not in self._graphs and self._counts[key] >= FREQUENT and self._may_record(images.device):
            try:
                self._graphs.record(key, images)
            except Exception as error:  # of any kind, for nobody asked for a graph
                self._has_failed = True
                reason = str(error).partition("\n")[0] or type(error).__name__
                _logger.warning(
                    f"No CUDA graph could be recorded of the network ({reason}), so Python goes on launching its "
                    "kernels one by one. MODEL.INFERENCE.CUDA_GRAPHS False spares the attempt."
                )
        return key in self._graphs

    def _may_record(self, device: torch.device) -> bool:
        if self._has_failed or len(self._graphs) == _MAX_SIZES:
            return False
        free, total = torch.cuda.mem_get_info(device)
        return free >= _LEAST_FREE * total


def _is_watched() -> bool:
    """Whether someone would notice that a graph calls neither modules nor operators."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.cuda.is_current_stream_capturing()
        or _has_any_global_hook()
    )


def _addresses(model: nn.Module) -> list[int] | None:
    """Where all modules in a model and their weights are, or None if one has a hook; in a third of PyTorch's time."""
    addresses: list[int] = []
    modules: list[nn.Module | None] = list(model._modules.values())
    while modules:
        module = modules.pop()
        if module is None:
            continue
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        addresses.append(id(module))
        for tensors in (module._parameters, module._buffers):
            addresses += [x.data_ptr() for x in tensors.values() if x is not None]
        modules += module._modules.values()
    return addresses
