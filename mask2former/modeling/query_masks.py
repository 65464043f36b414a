"""Masks that queries predict: embeddings of queries times the per-pixel embedding, computed where they are needed."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..ops.recording import is_recording
from ..structures import LazyTensor

__all__ = ["QueryMasks", "mask_logits", "predict_masks", "select_masks"]


def predict_masks(embeddings: Tensor, features: Tensor, *, training: bool) -> Tensor:
    """Mask logits (N, Q, H, W) of queries' embeddings (N, Q, C) and the per-pixel embedding (N, C, H, W).

    In training they are :class:`QueryMasks`, for the loss needs some of the queries and some of the pixels.
    """
    if training and not is_recording():
        return QueryMasks(embeddings, features)
    return mask_logits(embeddings, features.flatten(2)).unflatten(2, features.shape[-2:])


def mask_logits(embeddings: Tensor, pixels: Tensor) -> Tensor:
    """Dot products of queries' and pixels' embeddings.

    Args:
        embeddings: (N, Q, C); or, of optimised models, (N, Q, C + 1), of which the last is a bias of the query's mask.
        pixels: (N, C, P).

    Returns:
        (N, Q, P).
    """
    channels = pixels.shape[1]
    if embeddings.shape[-1] == channels:
        return embeddings @ pixels
    return torch.baddbmm(embeddings[..., channels:], embeddings[..., :channels], pixels)


class QueryMasks(LazyTensor):
    """Mask logits (N, Q, H, W) that are not computed before someone looks at them.

    Indexing of images, ``masks[image]`` and ``for mask in masks``, computes nothing, :func:`select_masks` only what is
    selected, and :func:`~mask2former.modeling.point_sampling.sample_logits` may sample the per-pixel embedding instead.

    Args:
        embeddings: of the queries, (N, Q, C), or (Q, C) of one image.
        features: the per-pixel embedding (N, C, H, W), or (C, H, W).
    """

    embeddings: Tensor
    features: Tensor

    @staticmethod
    def __new__(cls, embeddings: Tensor, features: Tensor) -> "QueryMasks":
        shape = (*embeddings.shape[:-1], *features.shape[-2:])
        masks = cls.describe(shape, embeddings.dtype, embeddings.device)
        masks.embeddings, masks.features = embeddings, features
        return masks

    def full(self) -> Tensor:
        """Compute all masks, an ordinary tensor."""
        pixels = self.features.to(self.embeddings.dtype).flatten(-2)
        return (self.embeddings @ pixels).unflatten(-1, self.features.shape[-2:])

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, int) and self.features.dim() == 4:
            return QueryMasks(self.embeddings[index], self.features[index])
        return self.full()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self.embeddings)))


def select_masks(predictions: Sequence[Tensor], queries: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Masks of some queries of each prediction and image.

    Args:
        predictions: (N, Q_l, H, W) each.
        queries: of each prediction and image, (R_i,) int64 on the device of the masks.

    Returns:
        For each prediction (R, H, W), image after image.
    """
    joined = _join(predictions)
    if joined is None:
        return [
            torch.cat([mask[rows] for mask, rows in zip(masks, of_masks, strict=True)])
            for masks, of_masks in zip(predictions, queries, strict=True)
        ]
    # One product for all of them, so that the gradient of the per-pixel embedding is made once. Every image has as many
    # rows in it as the one with the most, by embeddings of zeros, whose masks are cut off again.
    starts = [0, *accumulate(masks.shape[1] for masks in predictions)][:-1]
    by_image = list(zip(*queries, strict=True))
    rows = [torch.cat([part + start for part, start in zip(parts, starts, strict=True)]) for parts in by_image]
    embeddings = pad_sequence(
        [of_image[selected] for of_image, selected in zip(joined.embeddings, rows, strict=True)], batch_first=True
    )
    lengths: list[int] = []
    for parts, selected in zip(by_image, rows, strict=True):
        lengths += [*map(len, parts), embeddings.shape[1] - len(selected)]
    pieces = QueryMasks(embeddings, joined.features).full().flatten(0, 1).split(lengths)
    return [torch.cat(pieces[index :: len(predictions) + 1]) for index in range(len(predictions))]


def _join(predictions: Sequence[Tensor]) -> QueryMasks | None:
    """Predictions of one per-pixel embedding as one prediction of all their queries; None for others."""
    lazy = [masks for masks in predictions if isinstance(masks, QueryMasks)]
    if len(lazy) < len(predictions) or any(masks.features is not lazy[0].features for masks in lazy):
        return None
    return QueryMasks(torch.cat([masks.embeddings for masks in lazy], dim=1), lazy[0].features)
