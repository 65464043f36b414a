"""Masks that queries predict: embeddings of queries times the per-pixel embedding, computed where they are needed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.linear import linear
from ..ops.recording import is_exporting, is_recording
from ..structures import LazyTensor

__all__ = ["QueryMasks", "group_layers", "mask_logits", "masks_by_image", "predict_masks", "select_masks"]


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
        embeddings: (N, Q, C); in optimised models more channels, the first of which is the bias of a query's mask and
            the others are zeros.
        pixels: (N, C, P).

    Returns:
        (N, Q, P).
    """
    channels = pixels.shape[1]
    vectors, biases = embeddings[..., :channels], embeddings[..., channels : channels + 1]
    # One image goes without the dimension of the batch, with which PyTorch copies all pixels in bfloat16 on a CPU.
    alone = not is_exporting() and len(embeddings) == 1  # an exported graph that asks is for this number of images only
    product = linear(vectors[0], pixels[0].T)[None] if alone else vectors @ pixels
    return product if biases.numel() == 0 else product + biases


class QueryMasks(LazyTensor):
    """Mask logits (N, Q, H, W) that are not computed before someone looks at them.

    Indexing of images, ``masks[image]`` and ``for mask in masks``, computes nothing, :func:`select_masks` only what is
    selected, and :func:`~mask2former.modeling.point_sampling.sample_logits` may sample the per-pixel embedding instead.

    Attributes:
        embeddings: of the queries, (N, Q, C); or of one image (Q, C), or (L, Q, C) of L layers, which are indexed as
            images are.
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
        pixels = self.pixels()
        masks = linear(self.embeddings, pixels) if pixels.dim() == 2 else self.embeddings @ pixels.mT
        return masks.unflatten(-1, self.shape[-2:])

    def pixels(self) -> Tensor:
        """The per-pixel embedding as rows of channels (N, HW, C), or (HW, C), a view where types are the same."""
        return self.features.to(self.embeddings.dtype).movedim(-3, -1).flatten(-3, -2)

    def __getitem__(self, index: Any) -> Tensor:
        is_int = type(index) is int  # not bool, which adds a dimension
        if is_int and self.features.dim() == 4:
            return QueryMasks(self.embeddings[index], self.features[index])
        if (is_int or isinstance(index, slice)) and self.features.dim() == 3 and self.embeddings.dim() == 3:
            return QueryMasks(self.embeddings[index], self.features)
        return self.full()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self.embeddings)))


def group_layers(count: int, compare_on: str, device: torch.device) -> list[slice]:
    """Split ``count`` layers into those that are compared with targets at once, on "points" or whole "masks".

    On a GPU all of them are, because the number of kernels is what takes time there. On a CPU one layer after the other
    is faster, because it reuses memory. Whole masks take so much memory that they are compared layer by layer anyway.
    """
    size = count if compare_on == "points" and device.type != "cpu" else 1
    return [slice(start, start + size) for start in range(0, count, size)]


def masks_by_image(predictions: Sequence[Tensor]) -> list[Tensor | Sequence[Tensor]]:
    """For each image its masks of all layers, (L, Q, H, W), from those of each layer, (N, Q, H, W).

    They are :class:`QueryMasks` where the layers have the per-pixel embedding in common, and else L tensors.
    """
    joined = _join(predictions)
    if joined is None:
        return list(zip(*predictions, strict=True))
    by_layer = joined.embeddings.unflatten(1, (len(predictions), -1))
    features = joined.features.contiguous(memory_format=torch.channels_last)  # for all layers, which sample pixels
    return [QueryMasks(*of_image) for of_image in zip(by_layer, features, strict=True)]


def select_masks(
    predictions: Sequence[Tensor], queries: Sequence[Sequence[Tensor]], groups: Sequence[slice]
) -> list[Tensor]:
    """Masks of some queries of each layer and image.

    Args:
        predictions: of each layer (N, Q, H, W).
        queries: of each layer and image (R_i,) int64 on the device of the masks, numbered through all layers: from
            l * Q to (l + 1) * Q - 1 in layer l.
        groups: of layers.

    Returns:
        For each group (R, H, W), layer after layer, and in it image after image.
    """
    joined = _join(predictions)
    pieces = _look_up(predictions, queries) if joined is None else _compute(joined, queries)
    return [torch.cat([mask for of_layer in pieces[group] for mask in of_layer]) for group in groups]


def _look_up(predictions: Sequence[Tensor], queries: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """Masks (R_i, H, W) of queries of each layer and image, from those of each layer."""
    return [
        [mask.index_select(0, rows - layer * len(mask)) for mask, rows in zip(masks, of_layer, strict=True)]
        for layer, (masks, of_layer) in enumerate(zip(predictions, queries, strict=True))
    ]


def _compute(masks: QueryMasks, queries: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """Masks (R_i, H, W) of queries of each layer and image, from those of all layers."""
    by_image = []
    # One product an image for all layers, so that the gradient of the per-pixel embedding is made once.
    for embeddings, pixels, rows in zip(masks.embeddings, masks.pixels(), zip(*queries, strict=True), strict=True):
        # The gradient of index_select is added up where it belongs; that of an index would be sorted before.
        selected = linear(embeddings.index_select(0, torch.cat(rows)), pixels)
        by_image.append(selected.unflatten(-1, masks.shape[-2:]).split([len(x) for x in rows]))
    return list(zip(*by_image, strict=True))


def _join(predictions: Sequence[Tensor]) -> QueryMasks | None:
    """Predictions of one per-pixel embedding as one prediction of all their queries; None for others."""
    lazy = [masks for masks in predictions if isinstance(masks, QueryMasks)]
    if len(lazy) < len(predictions) or any(masks.features is not lazy[0].features for masks in lazy):
        return None
    return QueryMasks(torch.cat([masks.embeddings for masks in lazy], dim=1), lazy[0].features)
