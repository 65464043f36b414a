"""LVIS' AP: COCO's, where an image says only of some classes how many instances it has."""

import contextlib
import io
import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.durable_files import write_file
from mask2former.evaluation.average_precision import mean_precision, summarize_precision, without_boxes
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator

__all__ = ["LVISEvaluator", "federated_ap"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 300  # of an image, over all classes
_FREQUENCIES = ["r", "c", "f"]  # LVIS' rare, common and frequent classes


class LVISEvaluator(InstanceSegEvaluator):
    """Box and mask AP as Gupta et al., "LVIS", CVPR 2019, define it and as the package ``lvis`` computes it.

    Gives what Detectron2's evaluator of this name gives, without that package. The predictions stay in ``output_dir``,
    in ``lvis_instances_results.json``.
    """

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        category_ids = {v: k for k, v in to_contiguous.items()} if to_contiguous else None
        results = []
        for prediction in predictions:
            best = sorted(prediction["instances"], key=lambda instance: -instance["score"])[:MAX_DETECTIONS]
            for instance in best:
                contiguous = instance["category_id"]
                category = contiguous + 1 if category_ids is None else category_ids[contiguous]
                results.append({**instance, "category_id": category})
        if self._output_dir:
            write_file(Path(self._output_dir, "lvis_instances_results.json"), json.dumps(results).encode())
        if not self._do_evaluation:
            logger.info("There are no annotations to compare the predictions with.")
            return
        for task in ("bbox", "segm"):
            self._results[task] = federated_ap(self._coco_api, results, task)
            logger.info(f"LVIS AP, {task}:\n{create_small_table(self._results[task])}")


def federated_ap(truth: COCO, results: list[dict[str, Any]], iou_type: str) -> dict[str, float]:
    """Average the AP over the classes that have an instance.

    Each class is evaluated on the images that have it or are known not to have it. On those that may have more of it
    than are annotated, what matches no annotation is not counted as wrong.

    Args:
        truth: with LVIS' "neg_category_ids" and "not_exhaustive_category_ids" of images.
        results: in COCO's format, with the categories of ``truth``; at most 300 an image.
        iou_type: "bbox" or "segm".

    Returns:
        "AP", "AP50", "AP75", those of small, medium and large instances "APs", "APm", "APl", and those of rare, common
        and frequent classes "APr", "APc", "APf"; in percent, NaN for a group that has no instance.
    """
    categories = truth.dataset["categories"]
    precisions = {category["id"]: np.full((10, 101, 4), -1.0) for category in categories}
    if results:
        results = without_boxes(results) if iou_type == "segm" else results
        with contextlib.redirect_stdout(io.StringIO()):
            predicted = truth.loadRes(results)
            for category_id, image_ids in _images_of_categories(truth).items():
                precisions[category_id] = _category_precision(truth, predicted, iou_type, category_id, image_ids)
    every = np.stack(list(precisions.values()), axis=2)  # (thresholds, recalls, K, areas)
    metrics = summarize_precision(every)
    frequencies = np.array([category.get("frequency") for category in categories])
    for frequency in _FREQUENCIES:
        metrics[f"AP{frequency}"] = mean_precision(every[:, :, frequencies == frequency, 0])
    return metrics


class _CategoryEval(COCOeval):
    """COCO's evaluation of one class."""

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:  # noqa: N802, N803
        evaluated = super().evaluateImg(imgId, catId, aRng, maxDet)
        if evaluated and catId in self.cocoGt.imgs[imgId].get("not_exhaustive_category_ids", []):
            evaluated["dtIgnore"] = np.logical_or(evaluated["dtIgnore"], evaluated["dtMatches"] == 0)
        return evaluated


def _images_of_categories(truth: COCO) -> dict[int, list[int]]:
    """The images on which a class is evaluated, for the classes that have an instance."""
    positive, every = defaultdict(set), defaultdict(set)
    for annotation in truth.dataset["annotations"]:
        annotation.setdefault("iscrowd", 0)  # pycocotools needs it
        positive[annotation["category_id"]].add(annotation["image_id"])
    for image in truth.dataset["images"]:
        for category_id in image.get("neg_category_ids", []):
            every[category_id].add(image["id"])
    return {category_id: sorted(images | every[category_id]) for category_id, images in positive.items()}


def _category_precision(truth: COCO, predicted: COCO, iou_type: str, category_id: int, images: list[int]) -> np.ndarray:
    """Precision by IoU threshold (10), recall (101) and area (4); -1 where no instance is of that area."""
    evaluation = _CategoryEval(truth, predicted, iou_type)
    evaluation.params.catIds = [category_id]
    evaluation.params.imgIds = images
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, :, 0]
