"""From masks that competed for the pixels to panoptic segments."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

__all__ = ["accept_segments", "count_areas"]


def accept_segments(
    winner: Tensor,
    inside: Tensor,
    areas: Tensor,
    labels: list[int],
    *,
    thing_classes: Collection[int],
    overlap_threshold: float,
    scores: list[float] | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The panoptic result of S competing segments.

    Args:
        winner: which of them has each pixel (height, width), integers in 0..S - 1.
        inside: whether the pixel is in the winner's own mask (height, width), bool.
        areas: pixels of each one's own mask, those that it wins, and those that are both, (3, S); see
            :func:`count_areas`.
        labels: their classes.
        thing_classes: as in :func:`~mask2former.modeling.postprocessing.panoptic_inference`.
        overlap_threshold: as in :func:`~mask2former.modeling.postprocessing.panoptic_inference`.
        scores: of each one, for the segments' ``score``; None gives none.

    Returns:
        As :func:`~mask2former.modeling.postprocessing.panoptic_inference`.
    """
    accepted = [both > 0 and won / own >= overlap_threshold for own, won, both in zip(*areas.tolist(), strict=True)]
    ids, segments = _number_segments(labels, accepted, thing_classes)
    if scores is not None:
        _add_scores(segments, ids, scores)
    lookup = torch.tensor(ids, dtype=torch.int32).to(winner.device, non_blocking=True)
    return lookup.index_select(0, winner.flatten()).view_as(winner) * inside, segments


def count_areas(winner: Tensor, inside: Tensor, own_area: Tensor) -> Tensor:
    """The ``areas`` (3, S) of :func:`accept_segments`.

    Args:
        winner: as there.
        inside: as there.
        own_area: pixels of each segment's own mask, (S,): the first row of the result.
    """
    # Pixels outside and inside of the winner's mask in one count, because a GPU is waited for at each.
    counts = torch.bincount((2 * winner + inside).flatten(), minlength=2 * len(own_area)).view(-1, 2)
    return torch.stack([own_area, counts.sum(1), counts[:, 1]])


def _number_segments(
    labels: list[int], accepted: list[bool], thing_classes: Collection[int]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Segment id of each query (0 for none), and the segments; queries of one stuff class share a segment."""
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff_ids: dict[int, int] = {}
    for label, is_segment in zip(labels, accepted, strict=True):
        if not is_segment:
            ids.append(0)
            continue
        if label in stuff_ids:
            ids.append(stuff_ids[label])
            continue
        segment_id = len(segments) + 1
        is_thing = label in thing_classes
        segments.append({"id": segment_id, "isthing": is_thing, "category_id": label})
        ids.append(segment_id)
        if not is_thing:
            stuff_ids[label] = segment_id
    return ids, segments


def _add_scores(segments: list[dict[str, Any]], ids: list[int], scores: list[float]) -> None:
    """Write the highest score of its queries into each segment."""
    for segment_id, score in zip(ids, scores, strict=True):
        if segment_id:
            segment = segments[segment_id - 1]
            segment["score"] = max(score, segment.get("score", 0.0))
