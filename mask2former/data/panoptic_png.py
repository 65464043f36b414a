"""COCO's panoptic PNGs: the id of a segment is red + 256 * green + 65536 * blue, and 0 is void."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mask2former.image_io import read_image

from .label_map import replace_labels

__all__ = ["check_label_size", "read_panoptic_png", "read_segment_labels", "write_panoptic_png"]


def read_panoptic_png(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read the map of segment ids.

    Args:
        path: The PNG.
        size: Height and width of its image.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: The sizes differ.
    """
    # A pixel's bytes are its id; a fourth makes it an integer, and is taken away again.
    pixels = np.ascontiguousarray(read_image(path, "BGR"))
    ids: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0]
    ids &= 0xFFFFFF
    check_label_size(path, ids, size)
    return ids


def read_segment_labels(
    dataset_dict: dict[str, Any], size: tuple[int, int], labels: Sequence[int] | None = None
) -> np.ndarray:
    """Read the panoptic PNG of an image as a map of labels.

    Args:
        dataset_dict: With "pan_seg_file_name" and "segments_info".
        size: Height and width of the image.
        labels: Of pixels of no segment, then of the segments as they stand in "segments_info"; not negative. None
            numbers them: 0, 1, 2 and so on.

    Returns:
        (H, W) unsigned integers.
    """
    if "pan_seg_file_name" not in dataset_dict:
        raise ValueError(
            f"{dataset_dict['file_name']}: has no panoptic annotation (pan_seg_file_name). "
            "Use a panoptic data set, or the mapper of another task (INPUT.DATASET_MAPPER_NAME)."
        )
    pixels = read_panoptic_png(dataset_dict["pan_seg_file_name"], size).ravel()
    ids = np.array([0] + [segment["id"] for segment in dataset_dict["segments_info"]])
    # Neighbours are mostly of one segment, so there are far fewer runs of one id than pixels.
    starts = np.flatnonzero(np.concatenate([[True], pixels[1:] != pixels[:-1]]))
    runs = pixels[starts]
    order = np.argsort(ids)
    numbers = order[np.searchsorted(ids, runs, sorter=order).clip(max=len(ids) - 1)]
    label_of = np.arange(len(ids)) if labels is None else np.array(labels)
    run_labels = replace_labels(np.where(ids[numbers] == runs, numbers, 0), label_of)
    return np.repeat(run_labels, np.diff(starts, append=pixels.size)).reshape(size)


def write_panoptic_png(path: str | Path, ids: np.ndarray) -> None:
    """Write a map (H, W) of segment ids below 2^24."""
    Image.fromarray(np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=2).astype(np.uint8)).save(path)


def check_label_size(path: str | Path, labels: np.ndarray, size: tuple[int, int]) -> None:
    """Raise ValueError unless ``labels`` (H, W), read from ``path``, has the size (height, width) of its image."""
    if labels.shape != size:
        raise ValueError(
            f"{path}: the mask is {labels.shape[0]} x {labels.shape[1]} (height x width), its image is "
            f"{size[0]} x {size[1]}. Check that both belong together (photographs count as EXIF turns them)."
        )
