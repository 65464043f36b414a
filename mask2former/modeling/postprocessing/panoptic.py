"""Panoptic results: each pixel goes to the query that is surest of it (MaskFormer, Section 3.4)."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ...ops.masks import compete_masks, has_native_masks
from .chunks import in_chunks
from .one_wait import Steps, finish
from .prediction import MaskGeometry
from .segments import accept_segments, count_areas

__all__ = ["panoptic_inference", "panoptic_steps"]


def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    geometry: MaskGeometry,
    *,
    thing_classes: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    with_scores: bool = False,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give each pixel to the query with the highest class probability times mask probability.

    Args:
        mask_cls: (Q, K + 1).
        mask_pred: (Q, h, w).
        geometry: to the output.
        thing_classes: contiguous ids of countable classes; segments of any other class are merged into one.
        object_mask_threshold: queries whose best class is less probable take no part.
        overlap_threshold: a query that wins less than this share of the pixels of its own mask gives no segment.
        with_scores: give segments a ``score``, the class probability of the query, or of the surest of those that were
            merged.

    Returns:
        The id map (height, width) int32, where 0 is void, and its segments as ``id`` (from 1), ``isthing`` and
        ``category_id``.
    """
    steps = panoptic_steps(
        mask_cls,
        mask_pred,
        geometry,
        thing_classes=thing_classes,
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
        with_scores=with_scores,
    )
    result: tuple[Tensor, list[dict[str, Any]]] = finish(steps)[0]
    return result


def panoptic_steps(
    mask_cls: Tensor,
    mask_pred: Tensor,
    geometry: MaskGeometry,
    *,
    thing_classes: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    with_scores: bool = False,
) -> Steps[tuple[Tensor, list[dict[str, Any]]]]:
    """:func:`panoptic_inference`, for :func:`~mask2former.modeling.postprocessing.one_wait.finish`."""
    if len(mask_cls) == 0:
        yield ()
        return torch.zeros(geometry.output_size, dtype=torch.int32, device=mask_pred.device), []

    scores, labels = mask_cls.float().softmax(-1).max(-1)  # (Q,)
    takes_part = (labels != mask_cls.shape[-1] - 1) & (scores > object_mask_threshold)
    winner, inside, areas = _compete(mask_pred, scores * takes_part, geometry)
    areas, labels, scores = yield areas, labels, scores
    return accept_segments(
        winner,
        inside,
        areas,
        labels.tolist(),
        thing_classes=thing_classes,
        overlap_threshold=overlap_threshold,
        scores=scores.tolist() if with_scores else None,
    )


def _compete(mask_pred: Tensor, scores: Tensor, geometry: MaskGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the queries with a positive score wins each pixel.

    Returns:
        The winner (height, width), whether the pixel is inside the winner's own mask, and the ``areas`` (3, Q) of
        :func:`accept_segments`.
    """
    if has_native_masks(mask_pred, scores):
        return compete_masks(mask_pred, scores, geometry.resizing(mask_pred))
    best = mask_pred.new_full(geometry.output_size, -1.0, dtype=torch.float32)
    winner = torch.zeros(geometry.output_size, dtype=torch.int64, device=mask_pred.device)
    inside = torch.zeros(geometry.output_size, dtype=torch.bool, device=mask_pred.device)
    own_areas = torch.zeros(len(mask_pred), dtype=torch.int64, device=mask_pred.device)
    for queries in in_chunks((scores > 0).nonzero().flatten()):
        probabilities = geometry.to_output(mask_pred[queries]).sigmoid_()  # (chunk, height, width)
        own = probabilities >= 0.5
        own_areas[queries] = own.sum(dim=(1, 2))
        chunk_best, index = (scores[queries][:, None, None] * probabilities).max(dim=0)
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        winner = torch.where(better, queries[index], winner)
        inside = torch.where(better, own.gather(0, index[None])[0], inside)
    return winner, inside, count_areas(winner, inside, own_areas)
