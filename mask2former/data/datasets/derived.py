"""What evaluators want beside a panoptic PNG: COCO instances and a semantic PNG, derived from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ..label_map import encode_label_map
from .categories import Category

__all__ = ["ignore_label", "instance_annotations", "write_instances_json", "write_semantic_png"]


def ignore_label(num_classes: int) -> int:
    """The value of unlabelled pixels in semantic PNGs: the largest of 8 bits, or of 16 for more than 255 classes."""
    return 255 if num_classes <= 255 else 65535


def write_semantic_png(path: Path, numbers: np.ndarray, segments: Sequence[dict[str, Any]], num_classes: int) -> None:
    """Write the contiguous class of every pixel; crowds have their class.

    Args:
        path: Where to; its folder is made.
        numbers: (H, W) integers: 0 for pixels of no segment, i for ``segments[i - 1]``.
        segments: With contiguous "category_id".
        num_classes: How many classes there are.
    """
    void = ignore_label(num_classes)
    lookup = np.array([void] + [segment["category_id"] for segment in segments])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(lookup[numbers].astype(np.uint8 if void == 255 else np.uint16)).save(path)


def instance_annotations(
    image_id: int | str, numbers: np.ndarray, segments: Sequence[dict[str, Any]], categories: dict[int, int]
) -> list[dict[str, Any]]:
    """COCO's annotations (without "id") of the things among the segments of an image.

    Args:
        image_id: Its id.
        numbers: (H, W) integers: 0 for pixels of no segment, i for ``segments[i - 1]``.
        segments: With contiguous "category_id", "isthing" and "iscrowd".
        categories: From contiguous ids to those of the annotation file.
    """
    annotations = []
    for segment, rle in zip(segments, encode_label_map(numbers, len(segments)), strict=True):
        area = int(mask_util.area(rle))
        if segment["isthing"] and area:
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": categories[segment["category_id"]],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": area,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    return annotations


def write_instances_json(
    path: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[Sequence[dict[str, Any]]],
    categories: Sequence[Category],
) -> None:
    """Write COCO's instance file.

    Args:
        path: Where to.
        images: COCO's "images".
        annotations: One list an image; they are numbered from 1, for pycocotools takes 0 for no match.
        categories: The things among them are written.
    """
    flat = [annotation for image in annotations for annotation in image]
    content = {
        "info": {"description": "derived from panoptic annotations"},  # pycocotools needs the key
        "images": list(images),
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(flat, 1)],
        "categories": [category.to_coco() for category in categories if category.isthing],
    }
    path.write_text(json.dumps(content))
