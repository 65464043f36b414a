"""Mean intersection over union of a data set."""

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from panopticapi.utils import rgb2id
from tabulate import tabulate

from mask2former.durable_files import write_file
from mask2former.evaluation.run_lengths import encode_mask
from mask2former.evaluation.saved_predictions import decode_class_map
from mask2former.image_io import read_image, read_label_image

__all__ = [
    "ClassMapEvaluator",
    "SemSegEvaluator",
    "confusion_matrix",
    "read_class_map",
    "saved_confusions",
    "summarize_miou",
]

logger = logging.getLogger(__name__)


class ClassMapEvaluator(DatasetEvaluator):
    """What evaluators of class maps have in common: the truth of each image, and which classes were taken for which.

    Args:
        dataset_name: its metadata has ``stuff_classes`` (all classes) and ``ignore_label``.
    """

    def __init__(self, dataset_name: str) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        self._num_classes = len(self._metadata.stuff_classes)
        if self._num_classes == 1:
            logger.warning(
                "%s has the class %r alone, so every pixel is predicted as it, and the semantic metrics say nothing.",
                dataset_name,
                self._metadata.stuff_classes[0],
            )
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare a batch with the truth.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg": (K, H, W) scores.
        """
        for image, output in zip(inputs, outputs, strict=True):
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            truth = read_class_map(self._records[image["file_name"]], self._metadata)
            self.count(image["file_name"], predicted, confusion_matrix(predicted, truth, self._num_classes))

    def count(self, file_name: str, predicted: np.ndarray, confusion: np.ndarray) -> None:
        """Take an image into account.

        Args:
            file_name: of the image.
            predicted: (H, W) classes.
            confusion: :func:`confusion_matrix` of the image.
        """
        raise NotImplementedError


class SemSegEvaluator(ClassMapEvaluator):
    """mIoU and pixel accuracies, as Detectron2's evaluator of this name defines them, without its boundary IoU.

    The truth is read from "sem_seg_file_name" of the dataset dicts, or from their panoptic annotation. The predictions
    stay in ``output_dir/sem_seg_predictions.json``, one run-length encoded mask a class and image.

    Args:
        dataset_name: its metadata has ``stuff_classes`` (all classes) and ``ignore_label``.
        output_dir: receives the predictions.
    """

    def __init__(self, dataset_name: str, output_dir: str) -> None:
        super().__init__(dataset_name)
        to_contiguous = self._metadata.get("stuff_dataset_id_to_contiguous_id", {})
        self._dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in to_contiguous.items()}
        self._output_dir = Path(output_dir)

    def reset(self) -> None:
        self._confusion = np.zeros((self._num_classes + 1,) * 2, dtype=np.int64)
        self._predictions: list[dict[str, Any]] = []

    def count(self, file_name: str, predicted: np.ndarray, confusion: np.ndarray) -> None:
        self._confusion += confusion
        self._predictions += self._encode(predicted, file_name)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the metrics of all processes' predictions.

        Returns:
            {"sem_seg": {"mIoU": percent, ...}} on the main process.
        """
        gathered = comm.gather((self._confusion, self._predictions))
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain.from_iterable(theirs for _, theirs in gathered))
        self._output_dir.mkdir(parents=True, exist_ok=True)
        write_file(self._output_dir / "sem_seg_predictions.json", json.dumps(predictions).encode())
        metrics = summarize_miou(sum(theirs for theirs, _ in gathered), self._metadata.stuff_classes)
        names = ["mIoU", "fwIoU", "mACC", "pACC"]
        table = tabulate([[metrics[name] for name in names]], headers=names, tablefmt="pipe", floatfmt=".3f")
        logger.info(f"Semantic segmentation:\n{table}")
        return {"sem_seg": metrics}

    def _encode(self, classes: np.ndarray, file_name: str) -> list[dict[str, Any]]:
        return [
            {
                "file_name": file_name,
                "category_id": self._dataset_ids.get(label, label),
                "segmentation": encode_mask(classes == label),
            }
            for label in np.unique(classes).tolist()
        ]


def read_class_map(record: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """Read the class of each pixel from a dataset dict's annotation.

    Returns:
        (H, W) contiguous ids, and the number of classes for pixels without a class.

    Raises:
        ValueError: if there is no such annotation, or it has a class that the metadata does not have.
    """
    num_classes = len(metadata.stuff_classes)
    if "sem_seg_file_name" in record:
        path = record["sem_seg_file_name"]
        classes = read_label_image(path)
        classes[classes == metadata.ignore_label] = num_classes
    elif "pan_seg_file_name" in record:
        path = record["pan_seg_file_name"]
        segment_ids = rgb2id(read_image(path))
        classes = np.full(segment_ids.shape, num_classes)
        for segment in record["segments_info"]:
            classes[segment_ids == segment["id"]] = segment["category_id"]
    else:
        raise ValueError(
            f"{record['file_name']} has neither 'sem_seg_file_name' nor 'pan_seg_file_name' to compare its semantic "
            "segmentation with. Register one of them, or set MODEL.MASK_FORMER.TEST.SEMANTIC_ON to False."
        )
    wrong = classes[(classes < 0) | (classes > num_classes)]
    if len(wrong):
        raise ValueError(
            f"{path} has class {int(wrong[0])}; the metadata has {num_classes} stuff_classes and ignore_label "
            f"{metadata.ignore_label}."
        )
    return classes


def confusion_matrix(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by predicted and true class.

    Args:
        predicted: (H, W) contiguous ids.
        truth: (H, W) contiguous ids, ``num_classes`` for none.
        num_classes: K.

    Returns:
        (K + 1, K + 1), the predicted class first.
    """
    pairs = predicted.ravel() * (num_classes + 1) + truth.ravel()
    return np.bincount(pairs, minlength=(num_classes + 1) ** 2).reshape(num_classes + 1, num_classes + 1)


def saved_confusions(
    predictions: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]], metadata: Metadata
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Each record with the :func:`confusion_matrix` of its image, of what ``sem_seg_predictions.json`` holds."""
    by_file = defaultdict(list)
    for prediction in predictions:
        by_file[prediction["file_name"]].append(prediction)
    for record in records:
        truth = read_class_map(record, metadata)
        predicted = decode_class_map(by_file[record["file_name"]], truth.shape, metadata)
        yield record, confusion_matrix(predicted, truth, len(metadata.stuff_classes))


def summarize_miou(confusion: np.ndarray, class_names: list[str]) -> dict[str, float]:
    """Compute the metrics from a confusion matrix; in percent, NaN for what does not occur in the truth.

    Args:
        confusion: (K + 1, K + 1) as ``confusion_matrix`` gives it.
        class_names: K names.

    Returns:
        "mIoU" and "mACC" (means over the classes that occur), "fwIoU" (weighted by their pixels), "pACC" (share of
        pixels), and "IoU-<name>", "ACC-<name>".
    """
    known = confusion[:-1, :-1].astype(float)
    hits, predicted, true = known.diagonal(), known.sum(axis=1), known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        accuracy = hits / np.where(true > 0, true, np.nan)
        iou = hits / np.where(true > 0, predicted + true - hits, np.nan)
        pixel_accuracy = hits.sum() / true.sum()
        weighted = np.nansum(iou * true / true.sum()) if true.any() else np.nan
    metrics = {"mIoU": _mean(iou), "fwIoU": weighted}
    metrics |= {f"IoU-{name}": value for name, value in zip(class_names, iou, strict=True)}
    metrics |= {"mACC": _mean(accuracy), "pACC": pixel_accuracy}
    metrics |= {f"ACC-{name}": value for name, value in zip(class_names, accuracy, strict=True)}
    return {name: 100 * float(value) for name, value in metrics.items()}


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
