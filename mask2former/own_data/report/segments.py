"""Truth and predictions of images in one form, whatever the task: masks as run lengths, with classes."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from mask2former.data.label_map import encode_label_map
from mask2former.data.panoptic_png import read_panoptic_png, read_segment_numbers
from mask2former.evaluation.sem_seg_evaluation import read_class_map
from mask2former.own_data.settings import Task

__all__ = ["Segments", "predicted_segments", "true_segments"]

_LEAST_SCORE = 0.5  # of an instance that is drawn and counted

Record = dict[str, Any]


@dataclass
class Segments:
    """The segments of one image.

    Attributes:
        masks: COCO's compressed run lengths.
        classes: Contiguous, one a mask.
        scores: 0..1, or None where there are none.
        crowds: Whether each is a crowd, which is neither to be found nor to be missed.
    """

    masks: list[Any] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)

    def add(self, mask: Any, class_id: int, score: float | None = None, *, crowd: bool = False) -> None:
        """Add one."""
        self.masks.append(mask)
        self.classes.append(class_id)
        self.scores.append(score)
        self.crowds.append(crowd)


def true_segments(record: Record, task: Task, metadata: Any) -> Segments:
    """The annotation of an image."""
    size = record["height"], record["width"]
    if task == "semantic":
        return _of_class_map(read_class_map(record, metadata), len(metadata.stuff_classes))
    found = Segments()
    if "annotations" in record:
        for annotation in record["annotations"]:
            mask = annotation["segmentation"]
            mask = mask_util.merge(mask_util.frPyObjects(mask, *size)) if isinstance(mask, list) else mask
            found.add(mask, annotation["category_id"], crowd=bool(annotation.get("iscrowd", 0)))
        return found
    infos = record["segments_info"]
    for info, mask in zip(infos, encode_label_map(read_segment_numbers(record, size), len(infos)), strict=True):
        found.add(mask, info["category_id"], crowd=bool(info.get("iscrowd", 0)))
    return found


def predicted_segments(folder: Path, records: Sequence[Record], task: Task, metadata: Any) -> dict[str, Segments]:
    """What an evaluation has saved, by the file name of the image.

    Args:
        folder: ``OUTPUT_DIR/inference``.
        records: Dataset dicts.
        task: Which of the results.
        metadata: Of the data set.

    Raises:
        FileNotFoundError: There is nothing of this task.
    """
    return {"panoptic": _panoptic, "instance": _instances, "semantic": _semantic}[task](folder, records, metadata)


def _instances(folder: Path, records: Sequence[Record], metadata: Any) -> dict[str, Segments]:
    names = {record["image_id"]: record["file_name"] for record in records}
    found: dict[str, Segments] = {record["file_name"]: Segments() for record in records}
    to_contiguous = metadata.thing_dataset_id_to_contiguous_id
    for result in _read(folder / "coco_instances_results.json"):
        if result["score"] >= _LEAST_SCORE:
            class_id = to_contiguous[result["category_id"]]
            found[names[result["image_id"]]].add(result["segmentation"], class_id, result["score"])
    return found


def _panoptic(folder: Path, records: Sequence[Record], metadata: Any) -> dict[str, Segments]:
    by_id = {record["image_id"]: record for record in records}
    found = {}
    for prediction in _read(folder / "panoptic_predictions.json")["annotations"]:
        record = by_id[prediction["image_id"]]
        ids = read_panoptic_png(
            folder / "panoptic_predictions" / prediction["file_name"], (record["height"], record["width"])
        )
        segments = Segments()
        for info in prediction["segments_info"]:
            mask = mask_util.encode(np.asfortranarray(ids == info["id"], dtype=np.uint8))
            segments.add(mask, metadata.stuff_dataset_id_to_contiguous_id[info["category_id"]])
        found[record["file_name"]] = segments
    return found


def _semantic(folder: Path, records: Sequence[Record], metadata: Any) -> dict[str, Segments]:
    found: dict[str, Segments] = defaultdict(Segments)
    to_contiguous = metadata.get("stuff_dataset_id_to_contiguous_id", {})
    for prediction in _read(folder / "sem_seg_predictions.json"):
        class_id = to_contiguous.get(prediction["category_id"], prediction["category_id"])
        found[prediction["file_name"]].add(prediction["segmentation"], class_id)
    return found


def _of_class_map(classes: np.ndarray, num_classes: int) -> Segments:
    found = Segments()
    for class_id in np.unique(classes).tolist():
        mask = mask_util.encode(np.asfortranarray(classes == class_id, dtype=np.uint8))
        found.add(mask, class_id, crowd=class_id == num_classes)
    return found


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; evaluate first (train_net.py --eval-only), which writes it.")
    return json.loads(path.read_text())
