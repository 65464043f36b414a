"""What a decoder layer reads of the feature pyramid (Section 3.2.2): one scale a layer, or all of them at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MULTI_SCALE", "Scale", "all_at_once", "one_after_another"]


class Scale(NamedTuple):
    """The pixels that a layer reads: of one feature map, or of several one after the other."""

    memory: Tensor
    """Features (N, S, C), with the embedding of their level."""
    keys: Tensor
    """The same with their position encodings added, (N, S, C): once for all layers that read them."""
    mask_features: Tensor
    """The per-pixel embedding at the same pixels, (N, mask_dim, S): times a query's embedding, its mask here."""
    shapes: list[tuple[int, int]]
    """(height, width) of each map; their areas add up to S."""


def one_after_another(scales: Sequence[Scale]) -> list[Scale]:
    """The paper's efficient strategy: each layer reads one scale, in turn."""
    return list(scales)


def all_at_once(scales: Sequence[Scale]) -> list[Scale]:
    """The naive strategy of Table 4d: every layer reads all scales, concatenated."""
    return [
        Scale(
            memory=torch.cat([scale.memory for scale in scales], dim=1),
            keys=torch.cat([scale.keys for scale in scales], dim=1),
            mask_features=torch.cat([scale.mask_features for scale in scales], dim=2),
            shapes=[shape for scale in scales for shape in scale.shapes],
        )
    ]


# From the scales of the pyramid to what layer 1, 2, ... reads, starting over where the list ends.
MULTI_SCALE: dict[str, Callable[[Sequence[Scale]], list[Scale]]] = {
    "efficient": one_after_another,
    "naive": all_at_once,
}
