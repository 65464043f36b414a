"""Truth and predictions of images in one form, whatever the task: masks as run lengths, with classes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask2former.data.annotation_masks import encode_annotation
from mask2former.data.label_map import encode_label_map
from mask2former.data.panoptic_png import read_segment_labels
from mask2former.evaluation import SavedPredictions
from mask2former.evaluation.run_lengths import encode_mask
from mask2former.evaluation.sem_seg_evaluation import read_class_map
from mask2former.visualization import Task

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
            mask = encode_annotation(annotation["segmentation"], size)
            found.add(mask, annotation["category_id"], crowd=bool(annotation.get("iscrowd", 0)))
        return found
    infos = record["segments_info"]
    for info, mask in zip(infos, encode_label_map(read_segment_labels(record, size), len(infos)), strict=True):
        found.add(mask, info["category_id"], crowd=bool(info.get("iscrowd", 0)))
    return found


def predicted_segments(saved: SavedPredictions, record: Record, num_classes: int) -> Segments:
    """What an evaluation has saved of an image.

    Args:
        saved: Of the task that is judged.
        record: The image's dataset dict.
        num_classes: K.
    """
    if saved.task == "semantic":
        return _of_class_map(saved.semantic(record, (record["height"], record["width"])), num_classes)
    found = Segments()
    if saved.task == "instance":
        for mask, class_id, score in saved.encoded_instances(record, _LEAST_SCORE):
            found.add(mask, class_id, score)
        return found
    ids, infos = saved.panoptic(record)
    for info in infos:
        found.add(encode_mask(ids == info["id"]), info["category_id"])
    return found


def _of_class_map(classes: np.ndarray, num_classes: int) -> Segments:
    """Pixels of no class, whose value is the number of classes, are a crowd."""
    found = Segments()
    for class_id in np.unique(classes).tolist():
        found.add(encode_mask(classes == class_id), class_id, crowd=class_id == num_classes)
    return found
