"""Masks of annotation files, checked before a rasteriser sees them, and measured."""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ..json_files import is_number, shown

__all__ = ["measure_segmentation"]


def measure_segmentation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Check the mask of an annotation and measure it.

    Args:
        segmentation: A list of polygons [x0, y0, x1, y1, ...] in pixels, or an RLE dict with "size" and "counts",
            compressed or not.
        size: Height and width of the image.

    Returns:
        COCO's "segmentation" (polygons, or a compressed RLE as text), "area" in pixels and "bbox" [left, top, width,
        height].

    Raises:
        ValueError: It is none of these, belongs to an image of another size, or covers nothing.
    """
    if isinstance(segmentation, list):
        rle = _draw(segmentation, size)
    elif isinstance(segmentation, dict):
        rle = _checked_rle(segmentation, size)
        segmentation = {"size": list(size), "counts": rle["counts"].decode("ascii")}
    else:
        raise ValueError(f"its segmentation is {shown(segmentation)}, expected a list of polygons or an RLE.")
    area = int(mask_util.area(rle))
    if area == 0:
        raise ValueError(
            f"covers no pixel of its image of {size[1]} x {size[0]}. Coordinates are pixels from the upper left corner."
        )
    return {"segmentation": segmentation, "area": area, "bbox": mask_util.toBbox(rle).tolist()}


def _draw(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    if not polygons:
        raise ValueError(
            "has no segmentation, expected polygons or an RLE. Boxes alone cannot train masks: add it or remove the "
            "annotation."
        )
    for polygon in polygons:
        _check_polygon(polygon, size)
    return mask_util.merge(mask_util.frPyObjects(polygons, *size))


def _check_polygon(polygon: Any, size: tuple[int, int]) -> None:
    if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
        what = f"{len(polygon)} coordinates" if isinstance(polygon, list) else shown(polygon)
        raise ValueError(f"a polygon has {what}, expected [x, y, x, y, ...] of three points or more.")
    if not all(map(is_number, polygon)):
        wrong = next(value for value in polygon if not is_number(value))
        raise ValueError(f"a polygon has the coordinate {shown(wrong)}, expected numbers.")
    height, width = size
    for coordinates, extent, axis in ((polygon[::2], width, "x"), (polygon[1::2], height, "y")):
        # Annotators draw over the edge; what is farther out is of another picture, and takes a rasteriser forever.
        for value in (min(coordinates), max(coordinates)):
            if not -extent <= value <= 2 * extent:
                raise ValueError(
                    f"a polygon has {axis} = {value:g}, far outside of its image of {width} x {height}. Coordinates "
                    "are pixels from the upper left corner."
                )


def _checked_rle(rle: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A compressed RLE whose runs fill the picture exactly: pycocotools would show what is in memory behind it."""
    given = rle.get("size")
    if given != list(size):
        raise ValueError(f"an RLE is for {shown(given)} (height, width), its image is {list(size)}.")
    counts = rle.get("counts")
    runs = _decode(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("an RLE has wrong counts, expected a list of whole numbers from 0, or COCO's text of them.")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"an RLE has runs of {sum(runs)} pixels in all, its image has {size[0] * size[1]}.")
    return mask_util.frPyObjects({"size": list(size), "counts": runs}, *size)


def _decode(text: str | bytes) -> list[int] | None:
    """The run lengths of COCO's compressed text; None if it is none.

    Each character has five bits of a number, the lowest first, and a sixth that says whether more follow. From the
    fourth number on they are differences to the last but one.
    """
    try:
        characters = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        return None
    codes = np.frombuffer(characters, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 7:  # 40 bits: more than any picture has pixels
        return None
    position = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * position), starts)
    values -= ((codes[ends] & 16) > 0) * (np.int64(1) << (5 * (ends - starts + 1)))
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return [int(value) for value in values]
