"""Results in the forms of other tools."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from mask2former.inference.result_files import describe_segments
from mask2former.visualization import Task

__all__ = ["to_coco", "to_supervision"]


def to_coco(predictions: Mapping[str, Any], task: Task, metadata: Any, image_id: int | str) -> list[dict[str, Any]]:
    """See :meth:`mask2former.inference.Result.to_coco`."""
    annotations = []
    for segment in describe_segments(predictions, task, metadata):
        own_ids = _own_ids(metadata, segment["isthing"])
        segment["category_id"] = own_ids.get(segment["category_id"], segment["category_id"])
        annotations.append({**segment, "image_id": image_id, "iscrowd": 0})
    return annotations


def to_supervision(predictions: Mapping[str, Any], task: Task, metadata: Any) -> Any:
    """See :meth:`mask2former.inference.Result.to_supervision`."""
    try:
        import supervision
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("to_supervision() needs the package supervision: pip install supervision") from e
    segments = describe_segments(predictions, task, metadata)
    if not segments:
        return supervision.Detections.empty()
    masks = np.stack([mask_util.decode(segment["segmentation"]).astype(bool) for segment in segments])
    boxes = np.array([segment["bbox"] for segment in segments], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]  # (x0, y0, x1, y1)
    scores = [segment["score"] for segment in segments]
    return supervision.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=None if None in scores else np.array(scores, dtype=np.float32),
        class_id=np.array([segment["category_id"] for segment in segments]),
        data={"class_name": np.array([segment["category_name"] for segment in segments])},
    )


def _own_ids(metadata: Any, isthing: bool) -> dict[int, int]:
    """The data set's ids by contiguous id, as far as the metadata (may be None) know them."""
    kind = "thing" if isthing else "stuff"
    contiguous: Mapping[int, int] = getattr(metadata, f"{kind}_dataset_id_to_contiguous_id", None) or {}
    return {ours: theirs for theirs, ours in contiguous.items()}
