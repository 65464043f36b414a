"""Instance results: the most probable pairs of a query and a class (Section 4.1)."""

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from ...ops.masks import binarise_masks, has_native_masks
from .chunks import in_chunks
from .one_wait import Steps, finish
from .prediction import MaskGeometry

__all__ = ["instance_inference", "instance_steps", "masks_to_boxes", "most_probable_pairs"]

_TOPK_PARTS = 16  # of the pairs of queries and classes, which a GPU searches side by side


def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    geometry: MaskGeometry,
    *,
    topk: int,
    allowed_classes: Collection[int] | None = None,
    least_probability: float = 0.0,
) -> Instances:
    """The ``topk`` most probable pairs of a query and a class, scored by class and by how sure the mask is.

    Args:
        mask_cls: (Q, K + 1).
        mask_pred: (Q, h, w).
        geometry: to the output.
        topk: instances at most; a query can give several, of different classes.
        allowed_classes: drop other classes from the ``topk``; None keeps all.
        least_probability: drop those of a less probable class, whose scores would be lower too.

    Returns:
        ``Instances`` of the output's size with ``pred_masks`` (N, height, width) bool, ``pred_boxes``, the masks' tight
        boxes as (x0, y0, x1, y1) pixels, ``scores`` (N,) = class probability times mean mask probability inside the
        mask, and ``pred_classes`` (N,) int64.
    """
    steps = instance_steps(
        mask_cls,
        mask_pred,
        geometry,
        topk=topk,
        allowed_classes=allowed_classes,
        least_probability=least_probability,
    )
    result: Instances = finish(steps)[0]
    return result


def instance_steps(
    mask_cls: Tensor,
    mask_pred: Tensor,
    geometry: MaskGeometry,
    *,
    topk: int,
    allowed_classes: Collection[int] | None = None,
    least_probability: float = 0.0,
) -> Steps[Instances]:
    """:func:`instance_inference`, for :func:`~mask2former.modeling.postprocessing.one_wait.finish`."""
    probabilities = mask_cls.float().softmax(-1)[:, :-1]
    scores, pairs = yield _most_probable(probabilities, topk)
    scores, queries, classes = _queries_and_classes(
        scores, pairs, probabilities.shape[1], allowed_classes, least_probability
    )

    device = mask_pred.device
    masks, mask_scores, boxes = _binarise(mask_pred, queries, geometry)
    result = Instances(geometry.output_size)
    result.pred_masks = masks
    result.pred_boxes = Boxes(boxes)
    result.scores = scores.to(device, non_blocking=True) * mask_scores
    result.pred_classes = classes.to(device, non_blocking=True)
    return result


def most_probable_pairs(
    probabilities: Tensor,
    topk: int,
    allowed_classes: Collection[int] | None = None,
    least_probability: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``topk`` most probable pairs of a query and a class.

    Args:
        probabilities: (Q, K).
        topk: pairs at most.
        allowed_classes: drop other classes from the ``topk``; None keeps all.
        least_probability: drop less probable pairs.

    Returns:
        Probabilities, queries and classes, (N,) each, in no order.
    """
    found = _most_probable(probabilities, topk)
    return _queries_and_classes(*found, probabilities.shape[1], allowed_classes, least_probability)


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
    scores: Tensor,
    pairs: Tensor,
    num_classes: int,
    allowed_classes: Collection[int] | None,
    least_probability: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """From places among the Q * K pairs to the queries and classes of those that are kept; (N,) each."""
    queries, classes = pairs // num_classes, pairs % num_classes
    if allowed_classes is None and least_probability <= 0:
        return scores, queries, classes
    allowed = range(num_classes) if allowed_classes is None else set(allowed_classes)
    found = enumerate(zip((scores < least_probability).tolist(), classes.tolist(), strict=True))
    places = [place for place, (is_less, label) in found if label in allowed and not is_less]
    keep = torch.tensor(places, dtype=torch.int64).to(classes.device, non_blocking=True)
    return scores[keep], queries[keep], classes[keep]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (..., 4) float32, (x0, y0, x1, y1) pixel edges, of masks (..., H, W) bool; zeros for an empty one."""
    edges = []
    for profile in (masks.any(dim=-2), masks.any(dim=-1)):  # (..., W), (..., H)
        length = profile.shape[-1]
        index = torch.arange(length, device=masks.device)
        first = torch.where(profile, index, length).amin(dim=-1)
        last = torch.where(profile, index + 1, 0).amax(dim=-1)
        edges += [torch.minimum(first, last), last]
    x0, x1, y0, y1 = edges
    return torch.stack([x0, y0, x1, y1], dim=-1).float()


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
    for chunk in in_chunks(torch.arange(len(queries), device=mask_pred.device)):
        logits = geometry.to_output(mask_pred[queries[chunk]])
        inside = logits > 0
        masks[chunk] = inside
        total = (logits.sigmoid_() * inside).flatten(1).sum(1)
        mask_scores[chunk] = total / (inside.flatten(1).sum(1) + 1e-6)
    return masks, mask_scores, masks_to_boxes(masks)
