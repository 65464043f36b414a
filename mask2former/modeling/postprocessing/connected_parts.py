"""Masks of several separate regions, taken apart: for things that are known to be connected, such as cells."""

from collections.abc import Collection

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .mask_iou import pairwise_iou

__all__ = ["split_disconnected"]

# Smaller parts, in cells of the masks, are noise at the edges of others.
_LEAST_AREA = 3
# Masks that overlap by more are of one thing.
_SAME_IOU = 0.5


def split_disconnected(mask_cls: Tensor, mask_pred: Tensor, classes: Collection[int]) -> tuple[Tensor, Tensor]:
    """Make each connected region of a query's mask a query of its own.

    Regions are connected by edges, not corners. A query whose mask is connected, or empty, stays as it is; otherwise
    regions of less than three cells are dropped, but not the largest. Queries on several things share some of them:
    of masks that are the same by an IoU above one half, the most probable one stays.

    Args:
        mask_cls: class logits (Q, K + 1).
        mask_pred: mask logits (Q, h, w).
        classes: queries whose most probable class, "no object" aside, is another are left alone.

    Returns:
        Class logits (Q', K + 1) and mask logits (Q', h, w), parts in the place of their query. The logits of a part are
        those of the query, but for the other parts' cells, where their sign is turned.
    """
    splits = torch.zeros(mask_cls.shape[1] - 1, dtype=torch.bool)
    splits[list(classes)] = True
    may_split = splits[mask_cls[:, :-1].argmax(-1).cpu()].tolist()
    inside = (mask_pred > 0).cpu().numpy()
    rows: list[int] = []
    parts: list[Tensor] = []
    for query, mask in enumerate(mask_pred):
        count = 0
        if may_split[query]:
            regions, count = ndimage.label(inside[query])
        if count < 2:
            rows.append(query)
            parts.append(mask)
            continue
        areas = np.bincount(regions.ravel())[1:]
        kept = (np.flatnonzero(areas >= min(areas.max(), _LEAST_AREA)) + 1).tolist()
        labels = torch.from_numpy(regions).to(mask.device, non_blocking=True)
        rows += [query] * len(kept)
        parts += [torch.where((labels == 0) | (labels == part), mask, -mask) for part in kept]
    if not parts:
        return mask_cls, mask_pred
    logits = mask_cls[torch.tensor(rows).to(mask_cls.device, non_blocking=True)]
    masks = torch.stack(parts)
    may_repeat = splits[logits[:, :-1].argmax(-1).cpu()].to(masks.device)
    kept = _without_repetitions(logits, masks, may_repeat)
    return logits[kept], masks[kept]


def _without_repetitions(logits: Tensor, masks: Tensor, may_repeat: Tensor) -> Tensor:
    """Which of the masks (Q, h, w) repeat no more probable one of their class: (Q,) bool."""
    inside = masks > 0
    same = pairwise_iou(inside, inside) > _SAME_IOU
    scores, labels = logits.softmax(-1)[:, :-1].max(-1)
    same &= (labels[:, None] == labels) & may_repeat
    same = same.cpu()
    kept = torch.ones(len(masks), dtype=torch.bool)
    for query in scores.argsort(descending=True, stable=True).tolist():
        if kept[query]:
            repeats = same[query]
            repeats[query] = False
            kept &= ~repeats
    return kept.to(masks.device)
