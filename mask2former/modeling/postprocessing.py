"""Query predictions of one image to semantic, instance and panoptic results (MaskFormer, Section 3.4).

Pure functions. They share the arguments ``mask_cls``, class logits (Q, K + 1) with "no object" last, ``mask_pred``,
mask logits (Q, h, w) at the network's resolution, and ``geometry``, which says how to get from there to the output.
Masks are resized a few at a time, and only those that can matter, so that no Q masks of the output's size ever exist in
float32. Native operators (:mod:`mask2former.ops.masks`) do it row by row.

The CPU decides which masks become segments and instances. ``panoptic_steps`` and ``instance_steps`` are for
:func:`mask2former.modeling.one_wait.finish`, so that both together wait for a GPU once.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from ..ops.masks import binarise_masks, compete_masks, has_native_masks, resize_masks
from .mask_geometry import MaskGeometry
from .one_wait import Steps, finish
from .panoptic_segments import accept_segments, count_areas

__all__ = [
    "MaskGeometry",
    "instance_inference",
    "instance_steps",
    "masks_to_boxes",
    "most_probable_pairs",
    "panoptic_inference",
    "panoptic_steps",
    "semantic_inference",
]

# Masks that are resized together: enough to fill the machine, few enough for its memory.
_CHUNK = 16
# Numbers in the rows of all masks that are resized together: they fit a processor's second-level cache or nearly.
_BAND = 1 << 20
_GPU_BAND = 1 << 23  # likewise, of large GPUs
_TOPK_PARTS = 16  # of the pairs of queries and classes, which a GPU searches side by side


def semantic_inference(
    mask_cls: Tensor, mask_pred: Tensor, geometry: MaskGeometry, *, resize_before_inference: bool = True
) -> Tensor:
    """Score of a class at a pixel: the sum over queries of class probability times mask probability.

    Args:
        mask_cls: (Q, K + 1).
        mask_pred: (Q, h, w).
        geometry: to the output.
        resize_before_inference: mix classes at the output's size; otherwise at the padded input's, then resize scores.

    Returns:
        (K, height, width) float32; not normalised over classes.
    """
    probabilities = mask_cls.float().softmax(-1)[:, :-1]  # (Q, K)
    if resize_before_inference and has_native_masks(mask_pred, mask_cls):
        return _mix_by_rows(probabilities, mask_pred, geometry)
    resize = geometry.to_output if resize_before_inference else geometry.to_padded
    size = geometry.output_size if resize_before_inference else geometry.padded_size
    scores = mask_pred.new_zeros((probabilities.shape[1], *size), dtype=torch.float32)
    flat = scores.flatten(1)
    for chunk in _chunks(torch.arange(len(mask_pred), device=mask_pred.device)):
        flat.addmm_(probabilities[chunk].T, resize(mask_pred[chunk]).sigmoid_().flatten(1))
    return scores if resize_before_inference else geometry.padded_to_output(scores)


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
    """:func:`panoptic_inference`, for :func:`~mask2former.modeling.one_wait.finish`."""
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


def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    geometry: MaskGeometry,
    *,
    topk: int,
    allowed_classes: Collection[int] | None = None,
) -> Instances:
    """The ``topk`` most probable pairs of a query and a class, scored by class and by how sure the mask is.

    Args:
        mask_cls: (Q, K + 1).
        mask_pred: (Q, h, w).
        geometry: to the output.
        topk: instances at most; a query can give several, of different classes.
        allowed_classes: drop other classes from the ``topk``; None keeps all.

    Returns:
        ``Instances`` of the output's size with ``pred_masks`` (N, height, width) bool, ``pred_boxes``, the masks' tight
        boxes as (x0, y0, x1, y1) pixels, ``scores`` (N,) = class probability times mean mask probability inside the
        mask, and ``pred_classes`` (N,) int64.
    """
    steps = instance_steps(mask_cls, mask_pred, geometry, topk=topk, allowed_classes=allowed_classes)
    result: Instances = finish(steps)[0]
    return result


def instance_steps(
    mask_cls: Tensor,
    mask_pred: Tensor,
    geometry: MaskGeometry,
    *,
    topk: int,
    allowed_classes: Collection[int] | None = None,
) -> Steps[Instances]:
    """:func:`instance_inference`, for :func:`~mask2former.modeling.one_wait.finish`."""
    probabilities = mask_cls.float().softmax(-1)[:, :-1]
    scores, pairs = yield _most_probable(probabilities, topk)
    scores, queries, classes = _queries_and_classes(scores, pairs, probabilities.shape[1], allowed_classes)

    device = mask_pred.device
    masks, mask_scores, boxes = _binarise(mask_pred, queries, geometry)
    result = Instances(geometry.output_size)
    result.pred_masks = masks
    result.pred_boxes = Boxes(boxes)
    result.scores = scores.to(device, non_blocking=True) * mask_scores
    result.pred_classes = classes.to(device, non_blocking=True)
    return result


def most_probable_pairs(
    probabilities: Tensor, topk: int, allowed_classes: Collection[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``topk`` most probable pairs of a query and a class.

    Args:
        probabilities: (Q, K).
        topk: pairs at most.
        allowed_classes: drop other classes from the ``topk``; None keeps all.

    Returns:
        Probabilities, queries and classes, (N,) each, in no order.
    """
    return _queries_and_classes(*_most_probable(probabilities, topk), probabilities.shape[1], allowed_classes)


def _most_probable(probabilities: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The probabilities of the pairs, and their places among the Q * K; (N,) each."""
    count = min(topk, probabilities.numel())
    if probabilities.is_cuda:
        return _largest(probabilities.flatten(), count)
    # Unsorted, as in the official release, whose order of results this is.
    scores, pairs = probabilities.flatten().topk(count, sorted=False)
    return scores, pairs


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``values.topk(count)`` of (n,), part by part: PyTorch has one multiprocessor of a GPU search a whole row."""
    parts = max(1, min(_TOPK_PARTS, len(values) // max(1, 4 * count)))
    length = -(-len(values) // parts)
    rows = F.pad(values, (0, parts * length - len(values)), value=-torch.inf).view(parts, length)
    candidates, places = rows.topk(count, sorted=False)  # (parts, count)
    largest, chosen = candidates.flatten().topk(count, sorted=False)
    places = places + length * torch.arange(parts, device=values.device)[:, None]
    return largest, places.flatten()[chosen]


def _queries_and_classes(
    scores: Tensor, pairs: Tensor, num_classes: int, allowed_classes: Collection[int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """From places among the Q * K pairs to their queries and classes, of allowed classes alone; (N,) each."""
    queries, classes = pairs // num_classes, pairs % num_classes
    if allowed_classes is None:
        return scores, queries, classes
    allowed = set(allowed_classes)
    places = [place for place, label in enumerate(classes.tolist()) if label in allowed]
    keep = torch.tensor(places, dtype=torch.int64).to(classes.device, non_blocking=True)
    return scores[keep], queries[keep], classes[keep]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks (N, H, W) bool: (N, 4) float32 as (x0, y0, x1, y1) pixel edges; zeros for an empty mask."""
    boxes = []
    for profile in (masks.any(dim=1), masks.any(dim=2)):  # (N, W), (N, H)
        length = profile.shape[1]
        index = torch.arange(length, device=masks.device)
        first = torch.where(profile, index, length).amin(dim=1)
        last = torch.where(profile, index + 1, 0).amax(dim=1)
        boxes += [torch.minimum(first, last), last]
    x0, x1, y0, y1 = boxes
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    return iter(rows.split(_CHUNK)) if len(rows) else iter(())


def _mix_by_rows(probabilities: Tensor, mask_pred: Tensor, geometry: MaskGeometry) -> Tensor:
    """Class scores (K, height, width) of class probabilities (Q, K), some rows of all masks at a time."""
    height, width = geometry.output_size
    resizing = geometry.resizing(mask_pred)
    scores = mask_pred.new_empty((probabilities.shape[1], height, width), dtype=torch.float32)
    band = _BAND if mask_pred.device.type == "cpu" else _GPU_BAND
    step = max(1, band // max(1, len(mask_pred) * width))
    for begin in range(0, height, step):
        rows = range(begin, min(height, begin + step))
        inside = resize_masks(mask_pred, resizing, rows, sigmoid=True).flatten(1)  # (Q, len(rows) * width)
        with torch.autocast(mask_pred.device.type, enabled=False):
            torch.mm(probabilities.T, inside, out=scores.flatten(1)[:, begin * width : rows.stop * width])
    return scores


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
    for queries in _chunks((scores > 0).nonzero().flatten()):
        probabilities = geometry.to_output(mask_pred[queries]).sigmoid_()  # (chunk, height, width)
        own = probabilities >= 0.5
        own_areas[queries] = own.sum(dim=(1, 2))
        chunk_best, index = (scores[queries][:, None, None] * probabilities).max(dim=0)
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        winner = torch.where(better, queries[index], winner)
        inside = torch.where(better, own.gather(0, index[None])[0], inside)
    return winner, inside, count_areas(winner, inside, own_areas)


def _binarise(mask_pred: Tensor, queries: Tensor, geometry: MaskGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Binary masks of ``queries`` (N,), which are on the CPU, the mean probability inside each, and their boxes."""
    device = mask_pred.device
    if device.type != "cpu" and has_native_masks(mask_pred):  # a GPU makes a mask again sooner than it copies one
        return _binarise_each(mask_pred, queries.to(device, non_blocking=True), geometry)
    used, rows = queries.unique(return_inverse=True)
    masks, mask_scores, boxes = _binarise_each(mask_pred, used.to(device, non_blocking=True), geometry)
    rows = rows.to(device, non_blocking=True)
    return masks[rows], mask_scores[rows], boxes[rows]


def _binarise_each(mask_pred: Tensor, queries: Tensor, geometry: MaskGeometry) -> tuple[Tensor, Tensor, Tensor]:
    if has_native_masks(mask_pred):
        masks, _, mask_scores, boxes = binarise_masks(mask_pred[queries], geometry.resizing(mask_pred))
        return masks, mask_scores, boxes
    masks = torch.empty((len(queries), *geometry.output_size), dtype=torch.bool, device=mask_pred.device)
    mask_scores = torch.empty(len(queries), device=mask_pred.device)
    for chunk in _chunks(torch.arange(len(queries), device=mask_pred.device)):
        logits = geometry.to_output(mask_pred[queries[chunk]])
        inside = logits > 0
        masks[chunk] = inside
        total = (logits.sigmoid_() * inside).flatten(1).sum(1)
        mask_scores[chunk] = total / (inside.flatten(1).sum(1) + 1e-6)
    return masks, mask_scores, masks_to_boxes(masks)
