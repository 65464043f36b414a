"""Training in less memory: activations inside some modules are computed again for the backward pass, not kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..ops.recording import is_recording
from .backbone.swin import SwinStage
from .backbone.timm_backbone import TimmBackbone
from .pixel_decoder.deformable_encoder import MSDeformAttnTransformerEncoderLayer
from .transformer import TransformerDecoderLayer, TransformerEncoderLayer
from .transformer_decoder.layers import ResidualLayer

__all__ = ["checkpoint_activations"]

# What is computed again as a whole. Swin's stages do so by themselves, as the official MODEL.SWIN.USE_CHECKPOINT asks.
_BLOCKS = (
    CNNBlockBase,
    MSDeformAttnTransformerEncoderLayer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    ResidualLayer,
)


def checkpoint_activations(parts: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """Let parts of a model keep the inputs of their blocks and layers alone, in training.

    Losses and gradients stay the same, dropout included: the random state is that of the first time. Batch norms
    count a batch once.

    Args:
        parts: of a model, by name.
        names: which of them. Parameters keep their names.

    Raises:
        ValueError: if there is no part of a name, or none of its modules can compute anew.
    """
    unknown = sorted(set(names) - set(parts))
    if unknown:
        raise ValueError(f"MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING names {unknown}; expected some of {list(parts)}.")
    for name in names:
        modules = list(parts[name].modules())
        blocks = [module for module in modules if isinstance(module, (*_BLOCKS, SwinStage))]
        blocks += [block for module in modules if isinstance(module, TimmBackbone) for block in module.blocks]
        if not blocks:
            raise ValueError(
                f"MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING names {name!r}, but {type(parts[name]).__name__} has no "
                "blocks that can be computed again; leave it out."
            )
        for block in blocks:
            if isinstance(block, SwinStage):
                block.use_checkpoint = True
            else:
                block.forward = _Recomputed(block)  # type: ignore[method-assign]


class _Recomputed:
    """A module's ``forward`` that keeps its inputs, where there is a backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.forward: Callable[..., Any] = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or is_recording():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the first time, and for the second."""
        return nullcontext(), _kept_statistics(self.block)


@contextmanager
def _kept_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise as in training, and leave their running statistics as they are."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(module.momentum, module.num_batches_tracked) for module in norms]
    for module, (_, count) in zip(norms, before, strict=True):
        # A copy to count in, since synchronised norms want to count.
        module.momentum, module.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for module, values in zip(norms, before, strict=True):
            module.momentum, module.num_batches_tracked = values
