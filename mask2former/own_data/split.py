"""Dividing images into those to learn from and those to be judged by."""

import math
import random
from collections.abc import Sequence
from typing import Any

__all__ = ["split_records"]

Record = dict[str, Any]


def split_records(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """Divide images at random, the same for the same images.

    No class is lost to training: an image for validation that has a class which no image for training has goes over.

    Args:
        records: Dataset dicts.
        fraction: Share for validation, 0 to less than 1; at least one image unless it is 0.

    Returns:
        Images for training, and for validation.

    Raises:
        ValueError: The fraction is wrong, or one image should be divided.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"--val-fraction is {fraction:g}, expected 0 to less than 1.")
    if fraction > 0 and len(records) < 2:
        raise ValueError(
            "One image cannot be divided into training and validation; give --val-data, or --val-fraction 0 to do "
            "without."
        )
    ordered = sorted(records, key=lambda record: record["file_name"])
    chosen = list(range(len(ordered)))
    random.Random(0).shuffle(chosen)
    number = min(len(ordered) - 1, math.ceil(fraction * len(ordered))) if fraction > 0 else 0
    validation = set(chosen[:number])
    known = {c for i, record in enumerate(ordered) if i not in validation for c in _classes(record)}
    for i in chosen[:number]:
        if len(validation) > 1 and (lost := _classes(ordered[i]) - known):
            validation.remove(i)
            known |= lost
    return (
        [record for i, record in enumerate(ordered) if i not in validation],
        [record for i, record in enumerate(ordered) if i in validation],
    )


def _classes(record: Record) -> set[int]:
    segments = record["segments_info"] if "segments_info" in record else record["annotations"]
    return {segment["category_id"] for segment in segments if not segment.get("iscrowd", 0)}
