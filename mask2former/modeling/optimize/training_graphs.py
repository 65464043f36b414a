"""Training with the network's forward and backward pass as CUDA graphs, which Python has only to start.

Launching the kernels of a step from Python takes longer than a GPU takes for them. The loss stays as it is, for its
shapes depend on how many targets there are.
"""

import logging
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..mask_former import MaskFormer
from ..query_masks import QueryMasks

__all__ = ["record_training_graphs"]

_logger = logging.getLogger(__name__)

_MAX_RECORDINGS = 4  # each keeps memory for its gradients, and what its activations take beyond those of the others

Network = Callable[[Tensor], dict[str, Any]]


def record_training_graphs(model: nn.Module) -> None:
    """Let the network of a model that is trained be recorded at the first images of a size, in place.

    Losses and gradients are those of the same kernels launched one by one. Batches of four sizes are recorded. Those of
    others run as before, and so does what is not training: evaluation, passes without gradients, and one that comes
    before the backward pass of the one before it. Weights may change, and random numbers are drawn from PyTorch's
    generator, on which recording has no effect.

    Args:
        model: on a GPU. Its parameters and checkpoints stay the same. Nothing in its network may wait for the GPU, as
            activation checkpointing does for the state of random numbers.

    Raises:
        ValueError: if the model is not a :class:`MaskFormer` on a GPU. At the first images, RuntimeError if the network
            cannot be recorded, after which the process cannot go on.
    """
    if not isinstance(model, MaskFormer) or model.device.type != "cuda":
        raise ValueError(
            "SOLVER.CUDA_GRAPHS records the network of a MaskFormer on a GPU, but the model is a "
            f"{type(model).__name__} on {next(model.parameters()).device.type!r}; set it to False."
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
        self._pool: Any = None  # of memory, for all recordings, which play one after the other
        self._pending: Callable[[], Any] = _nothing  # the backward pass that is still to come, if any

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._network, self._model)

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """As ``network``. Results are overwritten by those of the next batch of that size."""
        # Outputs and activations that a backward pass needs are where this forward pass would write.
        if not (self._model.training and torch.is_grad_enabled()) or self._pending() is not None:
            return self._network(images)
        weights = [*self._model.parameters(), *self._model.buffers()]
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (images.shape, images.dtype, autocast, *((x.data_ptr(), x.requires_grad) for x in weights))
        if key not in self._recordings:
            if len(self._recordings) == _MAX_RECORDINGS:
                return self._network(images)
            self._recordings[key] = self._record(images)
        recording = self._recordings[key]
        # PyTorch keeps a recording's gradients where it writes them, and the next time would write over those that are
        # to be added to.
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        outputs = recording.play(images, *self._model.parameters())
        self._wait_for_backward(outputs)
        return recording.network.predictions(outputs)

    def _wait_for_backward(self, outputs: Sequence[Tensor]) -> None:
        node = outputs[0].grad_fn  # of all outputs
        if node is not None:
            self._pending = weakref.ref(node)  # without a backward pass, it goes with the outputs
            node.register_prehook(self._end_pending)

    def _end_pending(self, _: Any) -> None:
        self._pending = _nothing

    def _record(self, images: Tensor) -> "_Recording":
        _logger.info(f"SOLVER.CUDA_GRAPHS: recording the network for batches of {tuple(images.shape)}.")
        if len(self._recordings) == _MAX_RECORDINGS - 1:
            _logger.warning(
                f"SOLVER.CUDA_GRAPHS: this is the last of {_MAX_RECORDINGS} sizes; batches of others are trained on "
                "without graphs. Crops of one size (INPUT.CROP, INPUT.IMAGE_SIZE) need one recording."
            )
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        network = _TensorNetwork(self._network, self._model)
        # Not the parameters, but their memory: what accumulates the gradients of those, which DistributedDataParallel
        # keeps, belongs to another stream.
        weights = [x.detach().requires_grad_(x.requires_grad) for x in network.parameters()]
        autocast = torch.autocast(
            "cuda",
            torch.get_autocast_dtype("cuda"),
            enabled=torch.is_autocast_enabled("cuda"),
            cache_enabled=False,  # weights are converted in each replay
        )
        with torch.cuda.device(images.device), torch.random.fork_rng([images.device]), autocast:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            play = _make_graphs(network.run, (images.clone(), *weights), self._pool)
        for buffer, before in buffers:  # the network ran a few times to warm up, which batch norms have counted
            buffer.copy_(before)
        torch.cuda.empty_cache()  # of what that took
        return _Recording(play, network)


def _nothing() -> None:
    return None


def _make_graphs(run: Callable[..., tuple[Tensor, ...]], arguments: tuple[Tensor, ...], pool: Any) -> Any:
    with warnings.catch_warnings():
        # PyTorch before 2.15 warms up on one stream and records on another.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
        try:
            return torch.cuda.make_graphed_callables(run, arguments, allow_unused_input=True, pool=pool)
        except RuntimeError as error:
            raise RuntimeError(
                f"SOLVER.CUDA_GRAPHS: the network could not be recorded ({str(error).splitlines()[0]}). Perhaps there "
                "is too little memory, or something in it waits for the GPU; set SOLVER.CUDA_GRAPHS to False."
            ) from error


class _Recording(NamedTuple):
    play: Callable[..., tuple[Tensor, ...]]
    """From images and the model's parameters to what ``network.forward`` gives."""
    network: "_TensorNetwork"


class _TensorNetwork(nn.Module):
    """A network that gives tensors alone, as CUDA graphs need it."""

    def __init__(self, network: Network, model: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.model = model  # its parameters are this module's
        self.spec: TreeSpec
        self.places: list[list[int]] = []

    def run(self, images: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`forward` gives with other tensors for its parameters, in their order."""
        names = [name for name, _ in self.named_parameters()]
        outputs: tuple[Tensor, ...] = functional_call(self, dict(zip(names, weights, strict=True)), (images,))
        return outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`predictions` needs. The per-pixel embedding, which many masks share, is there once."""
        leaves, self.spec = tree_flatten(self.network(images))
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
