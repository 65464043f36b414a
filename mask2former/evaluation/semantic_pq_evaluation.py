"""Panoptic quality of semantic results: MaskFormer's PQ^St, which asks for regions where mIoU counts pixels."""

import logging
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from panopticapi.evaluation import PQStat

from mask2former.evaluation.panoptic_evaluation import sum_pq, summarize_pq
from mask2former.evaluation.saved_predictions import read_predictions
from mask2former.evaluation.sem_seg_evaluation import ClassMapEvaluator, saved_confusions

__all__ = ["SemanticPQEvaluator", "evaluate_saved_semantic_pq"]

logger = logging.getLogger(__name__)


class SemanticPQEvaluator(ClassMapEvaluator):
    """PQ, SQ and RQ as panopticapi defines them, where all pixels of a class in an image are one segment of stuff.

    Args:
        dataset_name: as for :class:`~mask2former.evaluation.SemSegEvaluator`.
    """

    def reset(self) -> None:
        self._stat = PQStat()

    def count(self, file_name: str, predicted: np.ndarray, confusion: np.ndarray) -> None:
        self._stat += _match_classes(confusion)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the metrics of all processes' predictions.

        Returns:
            {"semantic_pq": {"PQ": percent, "SQ": percent, "RQ": percent}} on the main process.
        """
        gathered = comm.gather(self._stat)
        if not comm.is_main_process():
            return None
        metrics = _summarize(sum_pq(gathered), self._num_classes)
        logger.info(f"Panoptic quality of the semantic segmentation:\n{create_small_table(metrics)}")
        return {"semantic_pq": metrics}


def evaluate_saved_semantic_pq(dataset_name: str, predictions: str | Path) -> dict[str, float]:
    """Compute PQ, SQ and RQ, in percent, as :class:`SemanticPQEvaluator`, from what ``SemSegEvaluator`` has saved.

    Args:
        dataset_name: the registered data set that was evaluated.
        predictions: ``sem_seg_predictions.json``.

    Raises:
        ValueError: an image of the data set has no prediction.
    """
    records, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    saved = read_predictions(predictions)
    predicted = {prediction.get("file_name") for prediction in saved}
    missing = [record["file_name"] for record in records if record["file_name"] not in predicted]
    if missing:
        raise ValueError(
            f"{predictions} has no prediction of {len(missing)} of the {len(records)} images of {dataset_name!r}, such "
            f"as {missing[0]}; it must be of the same data set, in the same place."
        )
    stats = (_match_classes(confusion) for _, confusion in saved_confusions(saved, records, metadata))
    return _summarize(sum_pq(stats), len(metadata.stuff_classes))


def _match_classes(confusion: np.ndarray) -> PQStat:
    """Hits and misses in one image, from its pixels by predicted and true class (K + 1, K + 1), the last being none."""
    overlap, predicted, true = confusion.diagonal()[:-1], confusion.sum(1)[:-1], confusion.sum(0)[:-1]
    in_void = confusion[:-1, -1]
    iou = overlap / np.maximum(predicted - in_void + true - overlap, 1)
    hit = iou > 0.5
    missed = (true > 0) & ~hit
    # A region that is mostly where nothing is annotated is no mistake.
    wrong = (predicted > 0) & ~hit & (2 * in_void <= predicted)
    stat = PQStat()
    for label in np.flatnonzero(hit | missed | wrong).tolist():
        counts = stat[label]
        counts.tp, counts.fn, counts.fp = int(hit[label]), int(missed[label]), int(wrong[label])
        counts.iou = float(iou[label]) if hit[label] else 0.0
    return stat


def _summarize(stat: PQStat, num_classes: int) -> dict[str, float]:
    metrics = summarize_pq(stat, [{"id": label, "isthing": 0} for label in range(num_classes)])
    return {name: metrics[name] for name in ("PQ", "SQ", "RQ")}
