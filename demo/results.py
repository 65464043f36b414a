"""The model's result as JSON and as a PNG of ids."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

from mask2former.visualization import Task, class_name

__all__ = ["describe_segments", "id_map", "save_results", "write_image"]


def save_results(
    predictions: Mapping[str, Any], task: Task, metadata: Any, *, picture: Path, json_path: Path, id_path: Path
) -> int:
    """Write what was found: an object with ``file_name``, ``height``, ``width``, ``task``, ``segments`` and ``id_map``.

    Args:
        predictions: the model's result for one picture.
        task: which part of the result is meant.
        metadata: names of the classes.
        picture: the file that was segmented.
        json_path: gets the object; its ``segments`` are those of :func:`describe_segments`.
        id_path: gets the ids of the pixels as 16-bit gray PNG, and is named in ``id_map``. Instances may overlap, so
            they have none: there ``id_map`` is null.

    Returns:
        The number of segments.
    """
    record: dict[str, Any] = {"file_name": picture.name, "task": task, "id_map": None}
    if task == "instance":
        record["height"], record["width"] = predictions["instances"].image_size
    else:
        ids = id_map(predictions, task)
        record["height"], record["width"] = ids.shape
        record["id_map"] = id_path.name
        write_image(id_path, ids.astype(np.uint16))
    record["segments"] = describe_segments(predictions, task, metadata)
    json_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return len(record["segments"])


def describe_segments(predictions: Mapping[str, Any], task: Task, metadata: Any) -> list[dict[str, Any]]:
    """List the segments of a result.

    Returns:
        For each segment ``id`` (from 1), ``category_id`` (contiguous, as in training), ``category_name``, ``isthing``,
        ``score`` (0..1, or None where the model gives none), ``area`` in pixels, ``bbox`` [x, y, width, height] in
        pixels and ``segmentation``, the mask in COCO's compressed run-length form.
    """
    segments = []
    for segment, mask in _segments(predictions, task):
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        segment["category_name"] = class_name(metadata, segment["category_id"], segment["isthing"])
        segment["area"] = int(mask_util.area(rle))
        segment["bbox"] = [int(value) for value in mask_util.toBbox(rle)]
        segment["segmentation"] = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
        segments.append(segment)
    return segments


def id_map(predictions: Mapping[str, Any], task: Task) -> np.ndarray:
    """The ``id`` of every pixel's segment: (H, W) int32, 0 where there is none.

    Ids of panoptic segments are the model's own; that of a semantic class is one more than the class.
    """
    if task == "panoptic":
        return predictions["panoptic_seg"][0].cpu().numpy().astype(np.int32)
    return predictions["sem_seg"].argmax(0).cpu().numpy().astype(np.int32) + 1


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR, or (H, W) uint8 or uint16, in the format that the name says."""
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path}: cannot be written; is there space, and may you write there?")


def _segments(predictions: Mapping[str, Any], task: Task) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """What is known of each segment, and its mask (H, W) bool."""
    if task == "instance":
        instances = predictions["instances"].to("cpu")
        columns = zip(instances.pred_classes.tolist(), instances.scores.tolist(), instances.pred_masks, strict=True)
        for i, (class_id, score, mask) in enumerate(columns, start=1):
            yield {"id": i, "category_id": class_id, "isthing": True, "score": score}, mask.numpy()
        return
    ids = np.asfortranarray(id_map(predictions, task))  # column by column, as run lengths go
    if task == "panoptic":
        for info in predictions["panoptic_seg"][1]:
            isthing, score = bool(info["isthing"]), info.get("score")
            known = {"id": info["id"], "category_id": info["category_id"], "isthing": isthing, "score": score}
            yield known, ids == info["id"]
    else:
        for i in np.unique(ids).tolist():
            yield {"id": i, "category_id": i - 1, "isthing": False, "score": None}, ids == i
