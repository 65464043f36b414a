"""From class and instance maps to the segments of a panoptic annotation."""

from typing import Any

import numpy as np
from scipy.ndimage import find_objects

__all__ = ["VOID", "measure_segments", "split_segments"]

VOID = -1


def split_segments(
    classes: np.ndarray, instances: np.ndarray, num_things: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Number the segments: all pixels of one class and, if that is a thing, of one instance id.

    Args:
        classes: (H, W) contiguous classes, things first; VOID for none.
        instances: (H, W) instance ids; 0 makes a thing a crowd. Not looked at where the class is not a thing.
        num_things: How many classes are things.

    Returns:
        numbers: (H, W) int64, 0 for void, i for ``segments[i - 1]``.
        segments: COCO's "segments_info" with "id" as in ``numbers`` and contiguous "category_id", plus "isthing".
    """
    base = int(instances.max(initial=0)) + 1
    keys = np.where(classes == VOID, VOID, classes * base + np.where(classes < num_things, instances, 0))
    found, numbers = np.unique(keys, return_inverse=True)
    numbers = numbers.reshape(keys.shape)
    if found[0] == VOID:
        found = found[1:]
    else:
        numbers += 1
    segments: list[dict[str, Any]] = []
    for key, measures in zip(found, measure_segments(numbers), strict=True):
        category, instance = divmod(int(key), base)
        isthing = category < num_things
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": category,
                "isthing": isthing,
                "iscrowd": int(isthing and instance == 0),
                **measures,
            }
        )
    return numbers, segments


def measure_segments(numbers: np.ndarray) -> list[dict[str, Any]]:
    """Area and bounding box of every segment, as COCO's "segments_info" has them.

    Args:
        numbers: (H, W) integers: 0 for pixels of no segment, i for the (i - 1)th segment.

    Returns:
        For 1 to the largest number "area" in pixels and "bbox" [left, top, width, height]; all 0 where a number is
        absent.
    """
    areas = np.bincount(numbers.ravel())[1:].tolist()
    measures = []
    for area, slices in zip(areas, find_objects(numbers), strict=True):
        rows, columns = slices or (slice(0, 0), slice(0, 0))
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        measures.append({"area": area, "bbox": box})
    return measures
