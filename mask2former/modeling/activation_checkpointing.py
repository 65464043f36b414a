"""Training in less memory: activations inside some modules are computed again for the backward pass, not kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..ops.recording import is_recording
from .backbone.swin import SwinStage
from .pixel_decoder.coarse_encoder import CoarseEncoderLayer
from .pixel_decoder.deformable_encoder import MSDeformAttnTransformerEncoderLayer
from .transformer import TransformerDecoderLayer, TransformerEncoderLayer
from .transformer_decoder.layers import ResidualLayer

__all__ = ["checkpoint_activations"]

# What is computed again as a whole. Swin's stages do so by themselves, as the official MODEL.SWIN.USE_CHECKPOINT asks.
_BLOCKS = (
    CNNBlockBase,
    CoarseEncoderLayer,
    MSDeformAttnTransformerEncoderLayer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    ResidualLayer,
)


def checkpoint_activations(parts: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """Let parts of a model keep the inputs of their blocks and layers alone, in training.

    Losses and gradients stay the same, dropout included: the random state is that of the first time.

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
        blocks = [module for module in parts[name].modules() if isinstance(module, (*_BLOCKS, SwinStage))]
        if not blocks:
            raise ValueError(
                f"MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING names {name!r}, but {type(parts[name]).__name__} has no "
                "blocks that can be computed again; leave it out."
            )
        for block in blocks:
            if isinstance(block, SwinStage):
                block.use_checkpoint = True
            else:
                block.forward = _Recomputed(block.forward)  # type: ignore[method-assign]


class _Recomputed:
    """A module's ``forward`` that keeps its inputs, where there is a backward pass."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled() or is_recording():
            return self.forward(*args)
        return checkpoint(self.forward, *args, use_reentrant=False)
