"""Masks of single annotations in COCO's three spellings: polygons, run lengths (RLE) and bitmaps."""

from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T

from .label_map import move_labels

__all__ = ["Part", "draw_annotation", "encode_annotation"]

Polygons = list[np.ndarray]

# The rasteriser counts a line's pixels, fifths of them, in 32 bits, and crashes where these do not suffice.
_FARTHEST = 1e6

Part = tuple[np.ndarray, tuple[slice, slice]]
"""A part of a mask, bool, and the rows and columns of the mask that it is."""


def draw_annotation(
    segmentation: Any, size: tuple[int, int], transforms: T.TransformList, new_size: tuple[int, int]
) -> Part:
    """Draw an annotation as it is after ``transforms``: polygons move as polygons, the others as masks.

    Args:
        segmentation: A list of polygons [x0, y0, x1, y1, ...]; an RLE dict with "size" and "counts", compressed or not;
            or a bitmap (H, W).
        size: Height and width of the original image.
        transforms: Applied to the image; they pad segmentations with 0.
        new_size: Height and width after them.

    Returns:
        The part of the mask (H', W') outside which it is empty.

    Raises:
        ValueError: It is none of these, or belongs to an image of another size.
    """
    if isinstance(segmentation, list):
        return _rasterise([transforms.apply_coords(points) for points in _polygons(segmentation)], new_size)
    mask = _decode(segmentation, size) if isinstance(segmentation, dict) else segmentation
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"a segmentation is {type(mask).__name__}, expected a list of polygons, an RLE or a bitmap")
    if mask.shape != size:
        raise ValueError(f"a mask is {mask.shape} (height, width), its image is {size}")
    return move_labels(transforms, (mask != 0).astype(np.uint8)).astype(bool), (slice(None), slice(None))


def encode_annotation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of polygons that were checked; an RLE, which has to be compressed, stays as it is.

    Args:
        segmentation: A list of polygons [x0, y0, x1, y1, ...], or an RLE dict.
        size: Height and width of the image.
    """
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    rle: dict[str, Any] = segmentation
    return rle


def _polygons(segmentation: list[Any]) -> Polygons:
    polygons = [np.array(points, dtype=np.float64).ravel() for points in segmentation]
    for points in polygons:
        if len(points) % 2 or len(points) < 6:
            raise ValueError(f"a polygon has {len(points)} coordinates, expected x and y of three points or more")
        near = np.abs(points) < _FARTHEST  # NaN is not
        if not near.all():
            raise ValueError(f"a polygon has the coordinate {points[~near][0]}, expected pixels of the image")
    return [points.reshape(-1, 2) for points in polygons]


def _rasterise(polygons: Polygons, size: tuple[int, int]) -> Part:
    """The union of polygons; what lies outside the picture is cut off by the rasteriser."""
    corners = np.concatenate(polygons) if polygons else np.zeros((1, 2))
    # A pixel more on either side, as far as the picture goes, so that only its borders cut anything off.
    left, top = np.maximum(np.floor(corners.min(axis=0)) - 1, 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)) + 2, (size[1], size[0])).astype(int).tolist()
    height, width = max(bottom - top, 0), max(right - left, 0)
    place = slice(top, top + height), slice(left, left + width)
    if not polygons or 0 in (height, width):
        return np.zeros((height, width), dtype=bool), place
    moved = [_move(points, left, top) for points in polygons]
    rles = mask_util.frPyObjects([points.ravel().tolist() for points in moved], height, width)
    # COCO's masks run down the columns; NumPy takes ten times as long to turn them.
    return cv2.transpose(mask_util.decode(mask_util.merge(rles)).T).view(bool), place


def _move(points: np.ndarray, left: int, top: int) -> np.ndarray:
    """Points from a place of the picture. They are rounded to fifths, as the rasteriser does, before and not after."""
    offset = np.array([left, top])
    return np.where(offset > 0, np.floor(points * 5 + 0.5) / 5 - offset, points)


def _decode(rle: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    if tuple(rle.get("size", size)) != size:
        raise ValueError(f"an RLE is {tuple(rle['size'])} (height, width), its image is {size}")
    compressed = mask_util.frPyObjects(rle, *size) if isinstance(rle["counts"], list) else rle
    return mask_util.decode(compressed)
