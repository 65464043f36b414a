"""Training with the network's forward and backward pass as CUDA graphs, which Python has only to start.

Launching the kernels of a step from Python takes longer than a GPU takes for them. The loss stays as it is, for its
shapes depend on how many targets there are.
"""

import gc
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..mask_former import MaskFormer
from ..query_masks import QueryMasks
from .cuda_graphs import Network, without_garbage_collection
from .recorded_operators import GpuWaitError, RecordedOperators

__all__ = ["record_training_graphs"]

_logger = logging.getLogger(__name__)

# Each keeps memory for its gradients, and what its activations take beyond those of the others. From PyTorch 2.14 on
# that is all they take, for it makes each recording on a stream of its own, and streams have no memory in common.
_MAX_RECORDINGS = 4


def record_training_graphs(model: nn.Module) -> None:
    """Let the network of a model that is trained be recorded at the first images of a size, in place.

    Losses and gradients are those of the same kernels launched one by one, but that under autocast a weight which is
    used several times is converted each time. Four recordings are made, of batches of different sizes for example.
    Others run as before, and so does what is not training: evaluation, passes without gradients, and one that comes
    before the backward pass of the one before it. Weights may change, and random numbers are drawn from PyTorch's
    generator, on which recording has no effect. Hooks on modules in the network run while it is recorded, not when that
    is played. A network that makes the CPU wait for the GPU is trained without graphs, of which a warning tells.

    Args:
        model: on a GPU. Its parameters and checkpoints stay the same. There may be no activation checkpointing, which
            waits for the state of random numbers.

    Raises:
        ValueError: if the model is not a :class:`MaskFormer` on a GPU. At the first images, RuntimeError if the network
            cannot be recorded, after which the process cannot go on.
    """
    if not isinstance(model, MaskFormer) or model.device.type != "cuda":
        raise ValueError(
            "SOLVER.CUDA_GRAPHS records the network of a MaskFormer on a GPU, but the model is a "
            f"{type(model).__name__} on {next(model.parameters()).device.type!r}; set it to False."
        )
    if model.has_own("forward"):
        _logger.warning(
            f"SOLVER.CUDA_GRAPHS records what run_network does, which {type(model).__name__}.forward has to call: if "
            "it does not, it is trained without graphs."
        )
    model.run_network = RecordedNetwork(model.run_network, model)


class RecordedNetwork:
    """What ``MaskFormer.run_network`` becomes. Copies record anew.

    Args:
        network: images (N, 3, H, W) to predictions.
        model: with the network's parameters.
    """

    def __init__(self, network: Network, model: nn.Module) -> None:
        self._network = network
        self._model = model
        self._recordings: dict[Any, _Recording] = {}
        self._constants: list[Any] = []  # what all recordings take for granted
        self._pool: Any = None  # of memory, for all recordings, which play one after the other
        self._pending: Callable[[], Any] = _nothing  # the backward pass that is still to come, if any
        self._waits = False  # the network for the GPU, so there can be no graph of it

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._network, self._model)

    @property
    def __func__(self) -> Any:
        """The method that this stands for, for ``MaskFormer.has_own``."""
        return getattr(self._network, "__func__", None)

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """As ``network``. Results are overwritten by those of the next batch of that size.

        Raises:
            RuntimeError: if the network cannot be recorded; in a second backward pass of the same results.
        """
        # Outputs and activations that a backward pass needs are where this forward pass would write.
        if not (self._model.training and torch.is_grad_enabled()) or self._waits or self._pending() is not None:
            return self._network(images)
        modules = list(self._model.modules())
        # As Module.parameters() gives them, in a fraction of its time.
        parameters = list(dict.fromkeys(x for module in modules for x in module._parameters.values() if x is not None))
        recording = self._find(images, modules, parameters)
        if recording is None:
            return self._network(images)
        # PyTorch keeps a recording's gradients where it writes them, and the next time would write over those that are
        # to be added to.
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        outputs = recording.play(images, *parameters)
        self._wait_for_backward(outputs)
        return recording.network.predictions(outputs)

    def _find(
        self, images: Tensor, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]
    ) -> "_Recording | None":
        """The recording for these images, made where there is none; None where there are too many, or can be none."""
        constants = [*(x.data_ptr() for x in parameters), *_state_of_buffers(modules)]
        if constants != self._constants:
            self._recordings.clear()
            self._pool = None  # which PyTorch frees with the last recording
            self._constants = constants
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        switches = [*(x.requires_grad for x in parameters), *(x.training for x in modules)]
        key = images.shape, images.dtype, autocast, *switches
        if key not in self._recordings and len(self._recordings) < _MAX_RECORDINGS:
            try:
                self._recordings[key] = self._record(images)
            except GpuWaitError as error:
                self._waits = True
                _logger.warning(
                    f"SOLVER.CUDA_GRAPHS: no graph can be recorded of the network ({error}), so it is trained without, "
                    "which takes longer and gives the same."
                )
        return self._recordings.get(key)

    def _wait_for_backward(self, outputs: Sequence[Tensor]) -> None:
        node = next((x.grad_fn for x in outputs if x.grad_fn is not None), None)  # of all outputs
        if node is None:
            return
        self._pending = pending = weakref.ref(node)  # without a backward pass, it goes with the outputs

        def end(_: Any) -> None:
            if self._pending is not pending:
                raise RuntimeError(
                    "SOLVER.CUDA_GRAPHS: this is a second backward pass of one forward pass, whose activations are "
                    "gone; set it to False."
                )
            self._pending = _nothing

        node.register_prehook(end)

    def _record(self, images: Tensor) -> "_Recording":
        _logger.info(f"SOLVER.CUDA_GRAPHS: recording the network for batches of {tuple(images.shape)}.")
        if len(self._recordings) == _MAX_RECORDINGS - 1:
            _logger.warning(
                f"SOLVER.CUDA_GRAPHS: this is the last of {_MAX_RECORDINGS} recordings. There is one for each size of "
                "batches and each choice of what is trained; what comes besides is trained on without graphs."
            )
        changing = [x for x in self._model.modules() if not isinstance(x, FrozenBatchNorm2d)]
        buffers = [(buffer, buffer.clone()) for module in changing for buffer in module.buffers(recurse=False)]
        network = _TensorNetwork(self._network, self._model)
        # Not the parameters, but their memory: what accumulates the gradients of those, which DistributedDataParallel
        # keeps, belongs to another stream.
        weights = [x.detach().requires_grad_(x.requires_grad) for x in network.parameters()]
        try:
            with torch.cuda.device(images.device), torch.random.fork_rng([images.device]):
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                play = _make_graphs(network.run, (images.clone(), *weights), self._pool)
        finally:
            # The network ran a few times to warm up, which batch norms have counted.
            for buffer, before in buffers:
                buffer.copy_(before)
        torch.cuda.empty_cache()  # of what that took
        return _Recording(play, network)


def _nothing() -> None:
    return None


def _make_graphs(run: Callable[..., tuple[Tensor, ...]], arguments: tuple[Tensor, ...], pool: Any) -> Any:
    gc.collect()  # what models that are gone leave of the GPU's memory
    # Autocast is for the forward pass alone, which enters it by itself.
    with without_garbage_collection(), torch.autocast("cuda", enabled=False), warnings.catch_warnings():
        # PyTorch before 2.14 warms up on one stream and records on another.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
        try:
            return torch.cuda.make_graphed_callables(run, arguments, allow_unused_input=True, pool=pool)
        except GpuWaitError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"SOLVER.CUDA_GRAPHS: the network could not be recorded ({str(error).splitlines()[0]}). Perhaps there "
                "is too little memory; set SOLVER.CUDA_GRAPHS to False."
            ) from error


def _state_of_buffers(modules: Sequence[nn.Module]) -> Iterator[int]:
    """Where they are, and which values those have that no training changes, from which weights are computed once."""
    for module in modules:
        is_constant = isinstance(module, FrozenBatchNorm2d)
        for buffer in module._buffers.values():
            if buffer is not None:
                yield from (buffer.data_ptr(), buffer._version if is_constant else 0)


class _Recording(NamedTuple):
    play: Callable[..., tuple[Tensor, ...]]
    """From images and the model's parameters to what ``network.forward`` gives."""
    network: "_TensorNetwork"


class _TensorNetwork(nn.Module):
    """A network that gives tensors alone, as CUDA graphs need it, in the autocast of now."""

    def __init__(self, network: Network, model: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.model = model  # its parameters are this module's
        self.spec: TreeSpec
        self.places: list[list[int]] = []
        self.read: list[Tensor] = []
        # Weights are converted in each replay, so conversions are not kept.
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        self.autocast = torch.autocast("cuda", autocast[1], enabled=autocast[0], cache_enabled=False)

    def run(self, images: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`forward` gives with other tensors for its parameters, in their order."""
        names = [name for name, _ in self.named_parameters()]
        with self.autocast, RecordedOperators() as operators:
            outputs: tuple[Tensor, ...] = functional_call(self, dict(zip(names, weights, strict=True)), (images,))
        # Position encodings, for example, which may be dropped where they are kept, but not before the recording.
        self.read = list(operators.tensors.values())
        return outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`predictions` needs. The per-pixel embedding, which many masks share, is there once."""
        leaves, self.spec = tree_flatten(self.network(images))
        if others := [type(x).__name__ for x in leaves if not isinstance(x, Tensor)]:
            raise RuntimeError(f"its predictions are not tensors alone, but also {', '.join(others)}")
        parts = [(x.embeddings, x.features) if isinstance(x, QueryMasks) else (x,) for x in leaves]
        tensors = {id(part): part for of_leaf in parts for part in of_leaf}
        places = {name: place for place, name in enumerate(tensors)}
        self.places = [[places[id(part)] for part in of_leaf] for of_leaf in parts]
        return tuple(tensors.values())

    def predictions(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """From the tensors of :meth:`forward` to what the network gives."""
        parts = [[tensors[place] for place in of_leaf] for of_leaf in self.places]
        leaves = [QueryMasks(*of_leaf) if len(of_leaf) > 1 else of_leaf[0] for of_leaf in parts]
        predictions: dict[str, Any] = tree_unflatten(leaves, self.spec)
        return predictions
