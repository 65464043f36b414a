"""A map of segment numbers: how every kind of annotation travels through the augmentations.

One integer map is moved once, and masks are cut out of what is left of it. Moving hundreds of masks one by one costs
hundreds of times as much.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T

from ..structures import SegmentMasks

__all__ = ["LabelMap", "encode_label_map", "move_labels", "replace_labels", "unflipped"]


@dataclass
class LabelMap:
    """Disjoint segments of an image.

    Attributes:
        labels: (H, W) integers; 0 is void, i belongs to segment i - 1. Padding becomes void.
        classes: (T,) int64, the contiguous class of each segment; NO_CLASS for one that is neither void nor a target.
    """

    NO_CLASS: ClassVar[int] = -1

    labels: np.ndarray
    classes: np.ndarray

    def class_map(self) -> np.ndarray:
        """(H, W) unsigned integers: 0 is void or no class, k + 1 is class k."""
        return replace_labels(self.labels, np.concatenate([[0], self.classes + 1]))

    def targets(self) -> tuple[np.ndarray, SegmentMasks]:
        """The targets that have a pixel left: classes (T',) int64 and masks (T', H, W)."""
        present = np.flatnonzero(self._is_present()[1:] & (self.classes != self.NO_CLASS))
        dtype = np.uint8 if self.labels.dtype == np.uint8 else np.int32  # what SegmentMasks takes
        labels = np.require(self.labels, dtype, ["C", "W"])
        ids = (present + 1).astype(labels.dtype)
        return self.classes[present], SegmentMasks(torch.from_numpy(labels), torch.from_numpy(ids))

    def _is_present(self) -> np.ndarray:
        """Which labels some pixel has, (T + 1,) bool."""
        count = len(self.classes) + 1
        if self.labels.dtype != np.uint8:
            return np.bincount(self.labels.ravel(), minlength=count) > 0
        present = np.zeros(count, dtype=bool)
        pixels = self.labels.tobytes()  # in which a byte is found many times sooner than NumPy counts them
        present[:256] = [label in pixels for label in range(min(count, 256))]
        return present


def replace_labels(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values[labels]``, of bytes in a tenth of the time.

    Args:
        labels: (H, W) integers; other than bytes in any shape.
        values: (T,), not negative.

    Returns:
        Unsigned integers in that shape, of as many bytes as the largest value needs.
    """
    values = values.astype(np.min_scalar_type(values.max(initial=0)))
    if labels.dtype != np.uint8 or values.dtype != np.uint8:
        return values[labels]
    table = np.zeros(256, dtype=np.uint8)
    table[: len(values)] = values[:256]
    return cv2.LUT(labels, table)


def move_labels(transform: T.Transform, labels: np.ndarray) -> np.ndarray:
    """Apply a geometric transform to an integer map, exactly.

    Detectron2 resizes uint8 maps by Pillow's nearest neighbour, which keeps them aligned with the image, and no other
    integers at all. So larger labels travel as bytes.

    Args:
        transform: A transform, or a list of them, that pads segmentations with 0.
        labels: (H, W) integers from 0 to 65535.

    Returns:
        (H', W'), uint8 where that suffices, else int32.
    """
    if isinstance(transform, T.TransformList):
        for step in transform.transforms:
            labels = move_labels(step, labels)
        return labels
    if labels.max(initial=0) < 256:
        return unflipped(transform.apply_segmentation(labels.astype(np.uint8, copy=False)))
    low, high = (transform.apply_segmentation(part.astype(np.uint8)) for part in (labels & 0xFF, labels >> 8))
    return low.astype(np.int32) + (high.astype(np.int32) << 8)


def unflipped(array: np.ndarray) -> np.ndarray:
    """The array (H, W) or (H, W, C), copied if it is a view from right to left.

    NumPy copies such views ten times slower, and Pillow copies them at every resize. A single row is copied always: it
    may be a view from bottom to top, which PyTorch refuses while NumPy calls it contiguous.
    """
    if len(array) == 1:
        return array.copy()
    if array.strides[1] >= 0:
        return array
    return cv2.flip(np.ascontiguousarray(array[:, ::-1]), 1).reshape(array.shape)


def encode_label_map(labels: np.ndarray, count: int) -> list[dict]:
    """COCO's compressed RLE of the masks ``labels == 1`` ... ``labels == count``, in one pass over the map.

    Args:
        labels: (H, W) integers.
        count: How many labels to encode.

    Returns:
        ``count`` dicts of "size" and "counts" (bytes), of an empty mask where a label is absent.
    """
    height, width = labels.shape
    flat = labels.ravel(order="F").astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    bounds = np.searchsorted(values[order], np.arange(1, count + 2))
    rles = []
    for first, last in pairwise(bounds):
        runs = order[first:last]
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        edges = edges[edges < flat.size]  # the last run has no end to write down
        counts = np.diff(edges, prepend=0, append=flat.size).tolist()
        rles.append(mask_util.frPyObjects({"counts": counts, "size": [height, width]}, height, width))
    return rles
