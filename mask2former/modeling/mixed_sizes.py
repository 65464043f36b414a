"""Batches of images of mixed sizes, of which each is to get what it gets alone.

Such a batch goes through the network as a list: one entry for each size, a batch of its own. Convolutions, norms and
resizing then see an image's own border. Only attention runs on all images at once; for that, entries are padded here,
and the attention is told what is padding.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["indices_by_size", "pad_maps", "pad_tokens", "valid_tokens"]


def indices_by_size(sizes: Sequence[Hashable]) -> list[list[int]]:
    """Group equal sizes: for each different one the indices that have it, in the order of first appearance."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        groups[size].append(index)
    return list(groups.values())


def pad_maps(batches: Sequence[Tensor]) -> Tensor:
    """Join batches of maps (N_b, C, H_b, W_b), padded with zeros at the right and bottom: (sum of N_b, C, H, W)."""
    height = max(maps.shape[-2] for maps in batches)
    width = max(maps.shape[-1] for maps in batches)
    return torch.cat([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in batches])


def pad_tokens(batches: Sequence[Tensor]) -> Tensor:
    """Join batches of tokens (N_b, S_b, C), padded with zeros at the end: (sum of N_b, S, C)."""
    length = max(tokens.shape[1] for tokens in batches)
    return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in batches])


def valid_tokens(batches: Sequence[Tensor]) -> Tensor:
    """Which tokens of :func:`pad_tokens` are no padding: (sum of N_b, S) bool."""
    return pad_tokens([x.new_ones((*x.shape[:2], 1), dtype=torch.bool) for x in batches])[..., 0]
