"""Predictions that an evaluation has saved, image by image."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata, MetadataCatalog
from panopticapi.utils import rgb2id

from mask2former.image_io import read_image

__all__ = ["SavedPredictions", "decode_class_map", "find_predictions", "read_predictions"]

_FILES = {
    "panoptic": ("panoptic_predictions.json",),
    "instance": ("coco_instances_results.json", "lvis_instances_results.json"),
    "semantic": ("sem_seg_predictions.json",),
}


def find_predictions(folder: str | Path) -> dict[str, Path]:
    """The files of predictions in ``OUTPUT_DIR/inference``, by task: "panoptic", "instance", "semantic".

    Raises:
        FileNotFoundError: there are none.
    """
    candidates = {task: [Path(folder) / name for name in names] for task, names in _FILES.items()}
    found = {task: path for task, paths in candidates.items() for path in paths if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{folder} has no predictions; run train_net.py --eval-only, which saves them (but not of Cityscapes' "
            "instances and classes)."
        )
    return found


def read_predictions(file: str | Path) -> Any:
    """What an evaluator has written: of panoptic predictions a dict, of others a list.

    Raises:
        ValueError: it is another file.
    """
    try:
        content = json.loads(Path(file).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); evaluate again if the evaluation was stopped.") from error
    expected = dict if Path(file).name in _FILES["panoptic"] else list
    if not isinstance(content, expected):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected the {expected.__name__} of predictions.")
    return content


class SavedPredictions:
    """What an evaluator has written of one task.

    Args:
        dataset_name: the registered data set that was evaluated.
        folder: where it was saved, ``OUTPUT_DIR/inference``.
        task: "panoptic", "instance" or "semantic".

    Raises:
        FileNotFoundError: nothing was saved of this task.
    """

    def __init__(self, dataset_name: str, folder: str | Path, task: str) -> None:
        found = find_predictions(folder)
        if task not in found:
            raise FileNotFoundError(f"{folder} has no {task} predictions, only {' and '.join(found)} ones.")
        self.dataset_name, self.task = dataset_name, task
        self._metadata = MetadataCatalog.get(dataset_name)
        self._pngs = Path(folder) / "panoptic_predictions"
        content = read_predictions(found[task])
        self._by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for prediction in content["annotations"] if task == "panoptic" else content:
            self._by_image[prediction["file_name" if task == "semantic" else "image_id"]].append(prediction)

    def panoptic(self, record: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Segment ids (H, W) of an image, 0 for none, and "id", contiguous "category_id" and "isthing" of each.

        Args:
            record: the image's dict of the data set, as for the other tasks.
        """
        if record["image_id"] not in self._by_image:
            raise ValueError(f"{record['file_name']}: there is no prediction of this image.")
        (prediction,) = self._by_image[record["image_id"]]
        ids = rgb2id(read_image(self._pngs / prediction["file_name"]))
        things = self._metadata.thing_dataset_id_to_contiguous_id
        stuff = self._metadata.stuff_dataset_id_to_contiguous_id
        segments = []
        for segment in prediction["segments_info"]:
            category, isthing = segment["category_id"], segment["category_id"] in things
            contiguous = things[category] if isthing else stuff[category]
            segments.append({"id": segment["id"], "category_id": contiguous, "isthing": isthing})
        return ids, segments

    def instances(
        self, record: dict[str, Any], shape: tuple[int, int], threshold: float = 0.0
    ) -> tuple[np.ndarray, list[int], list[float]]:
        """Masks (N, H, W) bool, contiguous classes and scores of an image's instances from a score on, best first."""
        kept = sorted(self.encoded_instances(record, threshold), key=lambda instance: -instance[2])
        masks = [mask_util.decode(rle).astype(bool) for rle, _, _ in kept]
        return (
            np.stack(masks) if masks else np.zeros((0, *shape), dtype=bool),
            [label for _, label, _ in kept],
            [score for _, _, score in kept],
        )

    def encoded_instances(self, record: dict[str, Any], threshold: float = 0.0) -> list[tuple[Any, int, float]]:
        """Run lengths, contiguous class and score of an image's instances from a score on, in no order."""
        things: dict[int, int] = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
        return [
            (p["segmentation"], things.get(p["category_id"], p["category_id"]), p["score"])
            for p in self._by_image[record["image_id"]]
            if p["score"] >= threshold
        ]

    def semantic(self, record: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
        """Contiguous classes (H, W) of an image of this size; the number of classes where nothing was predicted."""
        return decode_class_map(self._by_image[record["file_name"]], shape, self._metadata)


def decode_class_map(masks: Iterable[dict[str, Any]], shape: tuple[int, ...], metadata: Metadata) -> np.ndarray:
    """Put the masks of an image's classes together.

    Args:
        masks: "category_id" of the data set and "segmentation" of each.
        shape: (H, W).
        metadata: of the data set.

    Returns:
        Contiguous classes (H, W); the number of classes where there is no mask.
    """
    to_contiguous = metadata.get("stuff_dataset_id_to_contiguous_id", {})
    classes = np.full(shape, len(metadata.stuff_classes))
    for mask in masks:
        label = to_contiguous.get(mask["category_id"], mask["category_id"])
        classes[mask_util.decode(mask["segmentation"]) > 0] = label
    return classes
