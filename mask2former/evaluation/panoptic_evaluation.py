"""Panoptic quality of a data set, computed where the predictions are and summed over processes."""

import contextlib
import io
import itertools
import json
import logging
from collections.abc import Iterable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from tabulate import tabulate

from mask2former.durable_files import saved_bytes, write_file
from mask2former.evaluation.backend import use_hotcoco
from mask2former.processors import count_usable_cores

__all__ = ["PanopticEvaluator", "count_matches", "match_segments", "sum_pq", "summarize_pq"]

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of all, thing and stuff classes, as panopticapi defines them.

    Gives what Detectron2's ``COCOPanopticEvaluator`` gives, but does not fail for a data set without things or without
    stuff: the metrics of that group are NaN. The predictions stay in ``output_dir``, in COCO's format:
    ``panoptic_predictions.json`` and the folder ``panoptic_predictions``.

    Args:
        dataset_name: its metadata has ``panoptic_json``, ``panoptic_root`` and ``*_dataset_id_to_contiguous_id`` of
            things and stuff.
        output_dir: receives the predictions.
        backend: what computes the figures, see :func:`~mask2former.evaluation.backend.use_hotcoco`.
    """

    def __init__(self, dataset_name: str, output_dir: str, backend: str = "auto") -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._things = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
        self._stuff = {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()}
        self._truth_dir = PathManager.get_local_path(metadata.panoptic_root)
        with PathManager.open(metadata.panoptic_json) as f:
            self._truth = json.load(f)
        self._annotations = {annotation["image_id"]: annotation for annotation in self._truth["annotations"]}
        self._output_dir = Path(output_dir)
        self._png_dir = self._output_dir / "panoptic_predictions"
        use_hotcoco(backend, _ids(self._truth))  # complains now, not after the model ran over all images
        self._backend = backend
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the predictions of a batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "panoptic_seg": (H, W) segment ids, 0 for none, and a dict for each segment.
        """
        for image, output in zip(inputs, outputs, strict=True):
            segment_ids, segments = output["panoptic_seg"]
            annotation = self._annotation_of(image)
            png = self._png_dir / annotation["file_name"]
            png.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(id2rgb(torch.as_tensor(segment_ids).cpu().numpy()))
            write_file(png, saved_bytes(partial(picture.save, format="png")))
            self._predictions.append(
                {
                    "image_id": image["image_id"],
                    "file_name": annotation["file_name"],
                    "segments_info": [self._in_dataset_ids(segment) for segment in segments],
                }
            )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the metrics of all processes' predictions.

        Returns:
            {"panoptic_seg": {"PQ": percent, ...}} on the main process.
        """
        stat = count_matches(self._predictions, self._png_dir, self._truth, self._truth_dir, backend=self._backend)
        gathered = comm.gather((stat, self._predictions))
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain.from_iterable(theirs for _, theirs in gathered))
        missing = self._annotations.keys() - {prediction["image_id"] for prediction in predictions}
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._annotations)} images have no prediction, such as image_id "
                f"{min(missing, key=str)!r}. The data set {self._dataset_name!r} must have the images of its panoptic "
                "annotations."
            )
        self._output_dir.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**self._truth, "annotations": predictions})
        write_file(self._output_dir / "panoptic_predictions.json", content.encode())
        metrics = summarize_pq(sum_pq(theirs for theirs, _ in gathered), self._truth["categories"])
        _log_table(metrics)
        return {"panoptic_seg": metrics}

    def _annotation_of(self, image: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._annotations[image["image_id"]]
        except KeyError:
            raise ValueError(
                f"{image.get('file_name')} has image_id {image['image_id']!r}, which the panoptic annotations of "
                f"{self._dataset_name!r} do not have; they have such as {next(iter(self._annotations), None)!r}."
            ) from None

    def _in_dataset_ids(self, segment: dict[str, Any]) -> dict[str, Any]:
        category_ids = self._things if segment["isthing"] else self._stuff
        return {"id": int(segment["id"]), "category_id": category_ids[segment["category_id"]]}


def count_matches(
    predictions: list[dict[str, Any]],
    prediction_dir: str | Path,
    truth: dict[str, Any],
    truth_dir: str | Path,
    *,
    backend: str = "auto",
) -> PQStat:
    """The sum of :func:`match_segments`, by hotcoco where ``backend`` says so."""
    annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
    if not predictions or not use_hotcoco(backend, _ids(truth)):
        return sum_pq(match_segments(predictions, prediction_dir, truth, truth_dir).values())
    from hotcoco.panoptic import PanopticEval

    evaluation = PanopticEval(
        {**truth, "annotations": [annotations[prediction["image_id"]] for prediction in predictions]},
        {**truth, "annotations": predictions},
        gt_folder=str(truth_dir),
        pred_folder=str(prediction_dir),
    )
    evaluation.evaluate()
    total = PQStat()
    for category_id, counts in evaluation.results()["per_class"].items():
        category = total[category_id]
        category.tp, category.fp, category.fn, category.iou = (counts[name] for name in ("tp", "fp", "fn", "iou"))
    return total


def _ids(truth: dict[str, Any]) -> list[Any]:
    """Those of the images and of the classes."""
    return [entry["image_id"] for entry in truth["annotations"]] + [entry["id"] for entry in truth["categories"]]


def match_segments(
    predictions: list[dict[str, Any]], prediction_dir: str | Path, truth: dict[str, Any], truth_dir: str | Path
) -> dict[Any, PQStat]:
    """Match the predicted segments of each image with the true ones.

    Args:
        predictions: "image_id", "file_name" and "segments_info" of each image.
        prediction_dir: of the predictions' PNGs.
        truth: content of COCO's panoptic JSON, with at least these images.
        truth_dir: of the annotations' PNGs.

    Returns:
        Matches, misses and IoU sums of each category, by image_id.
    """
    categories = {category["id"]: category for category in truth["categories"]}
    annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}

    def match(prediction: dict[str, Any]) -> PQStat:
        # panopticapi writes areas into what it is given.
        copy = {**prediction, "segments_info": [dict(segment) for segment in prediction["segments_info"]]}
        pair = annotations[prediction["image_id"]], copy
        return pq_compute_single_core(0, [pair], str(truth_dir), str(prediction_dir), categories)

    # Threads: the time goes to reading PNGs and sorting in NumPy, which both let others run.
    with ThreadPool(count_usable_cores()) as pool, contextlib.redirect_stdout(io.StringIO()):
        stats = pool.map(match, predictions)
    return {prediction["image_id"]: stat for prediction, stat in zip(predictions, stats, strict=True)}


def sum_pq(stats: Iterable[PQStat]) -> PQStat:
    """Add up the statistics of images."""
    total = PQStat()
    for stat in stats:
        total += stat
    return total


def summarize_pq(stat: PQStat, categories: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Average over the categories that occur; in percent, NaN for a group without any.

    Returns:
        "PQ", "SQ", "RQ", and the same with "_th" for things and "_st" for stuff.
    """
    groups: dict[str, list[int]] = {"": [], "_th": [], "_st": []}
    for category in categories:
        counts = stat[category["id"]]
        if counts.tp + counts.fp + counts.fn:
            groups[""].append(category["id"])
            groups["_th" if category["isthing"] else "_st"].append(category["id"])
    metrics = {}
    for suffix, members in groups.items():
        qualities = [_quality(stat, member) for member in members]
        means = np.mean(qualities, axis=0) * 100 if qualities else [float("nan")] * 3
        metrics.update({f"{name}{suffix}": float(value) for name, value in zip(("PQ", "SQ", "RQ"), means, strict=True)})
    return metrics


def _quality(stat: PQStat, category_id: int) -> tuple[float, float, float]:
    counts = stat[category_id]
    detections = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
    segmentation = counts.iou / counts.tp if counts.tp else 0.0
    return counts.iou / detections, segmentation, counts.tp / detections


def _log_table(metrics: dict[str, float]) -> None:
    rows = [
        [group, *(metrics[f"{name}{suffix}"] for name in ("PQ", "SQ", "RQ"))]
        for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
    ]
    table = tabulate(rows, headers=["", "PQ", "SQ", "RQ"], tablefmt="pipe", floatfmt=".3f")
    logger.info(f"Panoptic quality:\n{table}")
