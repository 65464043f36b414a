"""How much memory a model's tensors need, found without computing; PyTorch's own buffers and the process not in it."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from fake_models import run_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Memory", "measure_memory"]


@dataclass(frozen=True)
class Memory:
    """Bytes, of one image in float32.

    Attributes:
        weights: parameters and buffers.
        inference: the most that activations need at a time.
        saved: activations that training keeps for the backward pass, without those of the loss.
        optimizer: gradients, and AdamW's two moments.
    """

    weights: int
    inference: int
    saved: int
    optimizer: int

    @property
    def training(self) -> int:
        """The least that training needs; each further image needs ``saved`` more."""
        return self.weights + self.optimizer + self.saved


def measure_memory(model: nn.Module, size: tuple[int, int]) -> Memory:
    """Follow the tensors that one image makes on its way through a model.

    Args:
        model: with values or without; left in inference mode, without gradients.
        size: height and width of the image, multiples of the model's size divisibility.
    """
    tensors = [*model.parameters(), *model.buffers()]
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    with torch.no_grad(), _LiveBytes() as inference:
        run_model(model.eval(), size)
    model.train().requires_grad_(True)
    with _LiveBytes() as training:
        predictions = run_model(model, size, in_training=True)
        saved = training.now
    del predictions
    model.eval().requires_grad_(False)
    return Memory(sum(tensor.nbytes for tensor in tensors), inference.peak, saved, 3 * parameters)


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and still live.

    Attributes:
        now, peak: at this moment, and the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        given = {tensor.untyped_storage() for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in given:
                self._add(storage)
        return output

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size).atexit = False

    def _remove(self, size: int) -> None:
        self.now -= size
