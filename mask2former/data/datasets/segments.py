"""From class and instance maps to the segments of a panoptic annotation."""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ..label_map import encode_label_map

__all__ = ["VOID", "split_segments"]

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
    segments = []
    for number, (key, rle) in enumerate(zip(found.tolist(), encode_label_map(numbers, len(found)), strict=True), 1):
        category, instance = divmod(key, base)
        isthing = category < num_things
        segments.append(
            {
                "id": number,
                "category_id": category,
                "isthing": isthing,
                "iscrowd": int(isthing and instance == 0),
                "area": int(mask_util.area(rle)),
                "bbox": [int(side) for side in mask_util.toBbox(rle)],
            }
        )
    return numbers, segments
