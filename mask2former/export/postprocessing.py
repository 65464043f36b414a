"""Post-processing of a batch without a decision that depends on values, so that it can be part of an exported graph.

The rules are those of :mod:`mask2former.modeling.postprocessing`, which is shorter and faster because it may look at
the values: here every shape is known beforehand, and what would be left out there is marked as absent.

Shared arguments: ``logits`` (N, Q, K + 1) class logits with "no object" last; ``masks`` (N, Q, h, w) mask logits;
``padded_size`` (H', W') of the network's input; ``size`` (H, W) of the images in it, at the top left, and of
the result.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modeling.postprocessing import masks_to_boxes

__all__ = ["instances_of_batch", "panoptic_of_batch", "semantic_of_batch"]

Size = tuple[int, int]

# Masks resized together: a loop over few at a time, written out in the graph, bounds the memory that it needs.
_CHUNK = 16


def semantic_of_batch(logits: Tensor, masks: Tensor, padded_size: Size, size: Size) -> Tensor:
    """Class scores (N, K, H, W), as :func:`~mask2former.modeling.postprocessing.semantic_inference`."""
    probabilities = logits.softmax(-1)[..., :-1].transpose(1, 2)  # (N, K, Q)
    scores = None
    for start in range(0, masks.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        inside = _to_size(masks[:, chunk], padded_size, size).sigmoid().flatten(2)  # (N, chunk, H * W)
        share = probabilities[..., chunk] @ inside
        scores = share if scores is None else scores + share
    assert scores is not None
    return scores.unflatten(2, size)


def panoptic_of_batch(
    logits: Tensor,
    masks: Tensor,
    padded_size: Size,
    size: Size,
    *,
    thing_classes: Tensor,
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segments that do not overlap, as :func:`~mask2former.modeling.postprocessing.panoptic_inference`.

    Args:
        logits: (N, Q, K + 1).
        masks: (N, Q, h, w).
        padded_size: (H', W').
        size: (H, W).
        thing_classes: (K,) bool, which classes are countable.
        object_mask_threshold: queries whose best class is less probable take no part.
        overlap_threshold: a query that wins less than this share of its own mask gives no segment.

    Returns:
        - The id map (N, H, W) int32, where 0 is void;
        - for each query, the id of its segment (N, Q) int32, 0 for none; queries of one stuff class share a segment;
        - its class (N, Q) int64 and the probability of that (N, Q), both without a meaning where the id is 0.
    """
    scores, labels = logits.softmax(-1).max(-1)  # (N, Q)
    num_classes = logits.shape[-1] - 1
    candidates = (labels != num_classes) & (scores > object_mask_threshold)
    # A candidate's score times probability is never negative, so others never win where there is a candidate.
    strength = torch.where(candidates, scores, -1.0)
    winner, inside, own_area = _compete(masks, strength, padded_size, size)

    flat, counted = winner.flatten(1), inside.flatten(1)
    zeros = torch.zeros_like(own_area)
    won_area = zeros.scatter_add(1, flat, torch.ones_like(flat, dtype=own_area.dtype))
    segment_area = zeros.scatter_add(1, flat, counted.to(own_area.dtype))
    large_enough = won_area.double() / own_area >= overlap_threshold
    # Pixels of a segment are in its query's own mask, so that is not empty either.
    accepted = candidates & (segment_area > 0) & large_enough
    is_thing = torch.cat([thing_classes, thing_classes.new_zeros(1)])[labels]
    ids = _number_segments(accepted, labels, is_thing)  # (N, Q)
    id_map = ids.gather(1, flat) * counted
    return id_map.unflatten(1, size).int(), ids.int(), labels, scores


def instances_of_batch(
    logits: Tensor, masks: Tensor, padded_size: Size, size: Size, *, topk: int, allowed_classes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The most probable instances, as :func:`~mask2former.modeling.postprocessing.instance_inference`.

    Args:
        logits: (N, Q, K + 1).
        masks: (N, Q, h, w).
        padded_size: (H', W').
        size: (H, W).
        topk: R, results per image.
        allowed_classes: (K,) bool, which classes can be an instance.

    Returns:
        Scores (N, R), classes (N, R) int64, tight boxes (N, R, 4) float32 as (x0, y0, x1, y1) pixels, and masks
        (N, R, H, W) bool; by falling class probability. A result of another than the allowed classes has the score 0.
    """
    num_classes = logits.shape[-1] - 1
    scores, pairs = logits.softmax(-1)[..., :-1].flatten(1).topk(topk)  # (N, R)
    queries, classes = pairs // num_classes, pairs % num_classes
    chosen = masks.flatten(2).gather(1, queries[..., None].expand(-1, -1, masks.shape[2] * masks.shape[3]))
    chosen = chosen.unflatten(2, (masks.shape[2], masks.shape[3]))  # (N, R, h, w)
    binary, mask_scores = [], []
    for start in range(0, topk, _CHUNK):
        resized = _to_size(chosen[:, start : start + _CHUNK], padded_size, size)
        inside = resized > 0
        area = inside.flatten(2).sum(-1)
        mask_scores.append((resized.sigmoid() * inside).flatten(2).sum(-1) / (area + 1e-6))
        binary.append(inside)
    result = torch.cat(binary, dim=1)
    scores = scores * torch.cat(mask_scores, dim=1) * allowed_classes[classes]
    return scores, classes, masks_to_boxes(result), result


def _to_size(masks: Tensor, padded_size: Size, size: Size) -> Tensor:
    """Resize (N, R, h, w) to the padded input and cut the padding off: (N, R, H, W)."""
    resized = F.interpolate(masks, size=padded_size, mode="bilinear", align_corners=False)
    # Not a slice: whether that is contiguous depends on the sizes, and a recorded graph would insist on what it was.
    for dim, length in ((2, size[0]), (3, size[1])):
        resized = resized.index_select(dim, torch.arange(length, device=masks.device))
    return resized


def _compete(masks: Tensor, strength: Tensor, padded_size: Size, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Which query wins each pixel (N, H, W), whether the pixel is in its own mask, and all own areas (N, Q) int64."""
    best = winner = inside = None
    areas = []
    for start in range(0, masks.shape[1], _CHUNK):
        probabilities = _to_size(masks[:, start : start + _CHUNK], padded_size, size).sigmoid()
        own = probabilities >= 0.5
        areas.append(own.flatten(2).sum(-1))
        chunk_best, index = (strength[:, start : start + _CHUNK, None, None] * probabilities).max(1)
        chunk_inside = own.gather(1, index[:, None])[:, 0]
        if best is None or winner is None or inside is None:
            best, winner, inside = chunk_best, index, chunk_inside
            continue
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        winner = torch.where(better, index + start, winner)
        inside = (better & chunk_inside) | (~better & inside)  # ONNX Runtime has no Where of booleans
    assert winner is not None
    assert inside is not None
    return winner, inside, torch.cat(areas, dim=1)


def _number_segments(accepted: Tensor, labels: Tensor, is_thing: Tensor) -> Tensor:
    """Ids from 1 on in the order of the queries (N, Q), 0 for those that are not accepted; stuff of a class shares."""
    num_queries = labels.shape[1]
    order = torch.arange(num_queries, device=labels.device)
    same_stuff = (labels[:, :, None] == labels[:, None, :]) & ~is_thing[:, :, None] & accepted[:, None, :]
    first_of_stuff = torch.where(same_stuff, order, num_queries - 1).amin(-1)  # (N, Q)
    first = torch.where(is_thing, order, first_of_stuff)
    opens = accepted & (first == order)
    numbers = opens.long().cumsum(1)
    return numbers.gather(1, first) * accepted
