"""Dividing images into those to learn from and those to be judged by."""

import math
import random
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["split_records"]

Record = dict[str, Any]


def split_records(
    records: Sequence[Record], fraction: float, background: Collection[int] = ()
) -> tuple[list[Record], list[Record]]:
    """Divide images at random, the same for the same images.

    Of images that show nothing both parts get their share. No class is lost to training: an image for validation that
    has a class which no image for training has is moved there.

    Args:
        records: Dataset dicts.
        fraction: Share for validation, 0 to less than 1; at least one image unless it is 0, and one that
            shows something if two do.
        background: Classes that are nothing to find: an image that has no others shows nothing.

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
    full: list[int] = []
    empty: list[int] = []
    for i in chosen:
        (full if _classes(ordered[i]).difference(background) else empty).append(i)
    judging = full[: _share(fraction, len(full))]
    validation = {*judging, *empty[: _share(fraction, len(ordered)) - len(judging)]}
    known = {c for i, record in enumerate(ordered) if i not in validation for c in _classes(record)}
    left = len(judging)
    for i in judging:
        if left > 1 and (lost := _classes(ordered[i]) - known):
            validation.remove(i)
            known |= lost
            left -= 1
    return (
        [record for i, record in enumerate(ordered) if i not in validation],
        [record for i, record in enumerate(ordered) if i in validation],
    )


def _share(fraction: float, number: int) -> int:
    """How many of so many images are for validation; not all of them."""
    return min(max(number - 1, 0), math.ceil(fraction * number))


def _classes(record: Record) -> set[int]:
    segments = record["segments_info"] if "segments_info" in record else record["annotations"]
    return {segment["category_id"] for segment in segments if not segment.get("iscrowd", 0)}
