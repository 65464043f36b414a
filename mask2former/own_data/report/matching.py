"""Which true segments were found, missed, or taken for something else, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from mask2former.evaluation.sem_seg_evaluation import confusion_matrix
from mask2former.own_data.report.segments import Segments
from mask2former.visualization import Task

__all__ = ["ClassQuality", "Matches", "class_qualities", "match_segments"]

_LEAST_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """One image.

    Attributes:
        quality: 0..1: sum of the IoUs of segments found, over those found plus half of those missed and half of those
            that are not there. For semantic segmentation the mean IoU of the classes that occur. None if the image has
            nothing to find and nothing was found.
        confusion: (K + 1, K + 1) the true class first; the last row is nothing, the last column missed. Segments, or
            pixels for semantic segmentation.
        ious: (K,) sums of IoUs of segments that were found with the right class.
    """

    quality: float | None
    confusion: np.ndarray
    ious: np.ndarray


@dataclass(frozen=True)
class ClassQuality:
    """One class: how many true segments (or pixels) there are, shares found and right, and quality as of an image."""

    true: int
    recall: float
    precision: float
    quality: float


def match_segments(true: Segments, predicted: Segments, task: Task, num_classes: int) -> Matches:
    """Compare an image's segments with the truth."""
    if task == "semantic":
        return _compare_pixels(true, predicted, num_classes)
    targets = [i for i, crowd in enumerate(true.crowds) if not crowd]
    crowd_masks = [true.masks[i] for i, crowd in enumerate(true.crowds) if crowd]
    kept = [i for i, mask in enumerate(predicted.masks) if not _covered(mask, crowd_masks)]
    found_masks, true_masks = [predicted.masks[i] for i in kept], [true.masks[i] for i in targets]
    overlaps = np.asarray(mask_util.iou(found_masks, true_masks, [0] * len(targets)))
    confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    ious = np.zeros(num_classes)
    pairs = _pair(overlaps)
    for i, j in pairs:
        found, wanted = predicted.classes[kept[i]], true.classes[targets[j]]
        confusion[wanted, found] += 1
        if found == wanted:
            ious[wanted] += overlaps[i, j]
    for i in set(range(len(kept))) - {i for i, _ in pairs}:
        confusion[num_classes, predicted.classes[kept[i]]] += 1
    for j in set(range(len(targets))) - {j for _, j in pairs}:
        confusion[true.classes[targets[j]], num_classes] += 1
    counted = confusion[:num_classes].sum() + confusion[:, :num_classes].sum()  # TP twice, FP and FN once
    return Matches(float(ious.sum() / (counted / 2)) if counted else None, confusion, ious)


def class_qualities(confusion: np.ndarray, ious: np.ndarray, task: Task) -> list[ClassQuality]:
    """Of each class; NaN where it does not occur.

    Args:
        confusion: (K + 1, K + 1), the sum of those of all :class:`Matches`.
        ious: (K,) likewise.
        task: Says what was counted.
    """
    hits = confusion.diagonal()[:-1]
    true, found = confusion.sum(1)[:-1], confusion.sum(0)[:-1]
    with np.errstate(invalid="ignore"):
        quality = hits / (true + found - hits) if task == "semantic" else 2 * ious / (true + found)
        columns = (true, hits / true, hits / found, quality)
    return [ClassQuality(*(column[i].item() for column in columns)) for i in range(len(ious))]


def _compare_pixels(true: Segments, predicted: Segments, num_classes: int) -> Matches:
    """Void pixels, which are the crowds of a semantic annotation, do not count."""
    size = tuple(true.masks[0]["size"])
    found, wanted = (_class_map(segments, num_classes, size) for segments in (predicted, true))
    confusion = confusion_matrix(found, wanted, num_classes).T.copy()
    confusion[num_classes] = 0
    hits = confusion.diagonal()[:-1]
    true_pixels, found_pixels = confusion.sum(1)[:-1], confusion.sum(0)[:-1]
    present = true_pixels > 0
    ious = np.divide(hits, true_pixels + found_pixels - hits, out=np.zeros(num_classes), where=present)
    return Matches(float(ious[present].mean()) if present.any() else None, confusion, ious)


def _class_map(segments: Segments, num_classes: int, size: tuple[int, ...]) -> np.ndarray:
    """(H, W) classes, and the number of classes where there is none."""
    classes = np.full(size, num_classes)
    for mask, class_id, crowd in zip(segments.masks, segments.classes, segments.crowds, strict=True):
        if not crowd:
            classes[mask_util.decode(mask) > 0] = class_id
    return classes


def _pair(overlaps: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of a row and a column, the best first, each once and of at least the least IoU."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set(), set()
    for flat in np.argsort(-overlaps, axis=None, kind="stable").tolist():
        i, j = divmod(flat, overlaps.shape[1])
        if overlaps[i, j] < _LEAST_IOU:
            break
        if i not in rows and j not in columns:
            pairs.append((i, j))
            rows.add(i)
            columns.add(j)
    return pairs


def _covered(mask: object, crowds: Sequence[object]) -> bool:
    """Whether most of a mask is in a crowd."""
    return bool(crowds) and bool(mask_util.iou([mask], list(crowds), [1] * len(crowds)).max() > _LEAST_IOU)
