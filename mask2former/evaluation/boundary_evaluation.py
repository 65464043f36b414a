"""Boundary AP: mask AP that asks for the outline too."""

import contextlib
import io
import itertools
import logging
import math
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation.average_precision import summarize_precision, without_boxes
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator

__all__ = ["BoundaryEvaluator", "boundary_ap", "boundary_of"]

logger = logging.getLogger(__name__)

Rle = dict[str, Any]


class BoundaryEvaluator(InstanceSegEvaluator):
    """AP with the smaller of mask IoU and Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021).

    The outlines of predictions are found in the process that has them.
    """

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the instances of a batch, with their outlines; the arguments are as of Detectron2's COCOEvaluator."""
        before = len(self._predictions)
        super().process(inputs, outputs)
        for prediction in self._predictions[before:]:
            for instance in prediction["instances"]:
                instance["boundary"] = _boundary_rle(instance["segmentation"])

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        self._use_dataset_ids(predictions)
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        metrics = boundary_ap(self._coco_api, results, self._max_dets_per_image[-1])
        logger.info(f"Boundary AP:\n{create_small_table(metrics)}")
        self._results["boundary"] = metrics


def boundary_ap(truth: COCO, results: list[dict[str, Any]], max_detections: int = 100) -> dict[str, float]:
    """Compute the boundary AP of results in COCO's format.

    Args:
        truth: the annotations.
        results: with "segmentation" (RLE); a "boundary" (RLE) that is there already is used.
        max_detections: how many of an image and class count.

    Returns:
        "AP", "AP50", "AP75", and of small, medium and large instances "APs", "APm", "APl"; in percent, NaN where there
        is no instance.
    """
    masks = without_boxes(results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _BoundaryEval(truth, truth.loadRes(masks) if masks else COCO(), "segm")
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return summarize_precision(evaluation.eval["precision"][..., 0])


def boundary_of(mask: np.ndarray, dilation_ratio: float = 0.02) -> np.ndarray:
    """The pixels of a mask that are near its outline; the border of the picture is part of an outline.

    Near means ``dilation_ratio`` times the picture's diagonal, rounded, at least one pixel, in rows and in columns.

    Args:
        mask: (H, W), 0 outside.
        dilation_ratio: 0.02 in the paper.

    Returns:
        (H, W) bool.
    """
    near = max(1, round(dilation_ratio * math.hypot(*mask.shape)))
    result = np.zeros(mask.shape, dtype=bool)
    # Only the mask's box is looked at: what is around it is outside of the mask, like what is around the picture.
    left, top, width, height = cv2.boundingRect((mask != 0).astype(np.uint8))
    box = slice(top, top + height), slice(left, left + width)
    inside = np.pad(mask[box] != 0, 1).astype(np.uint8)
    core = cv2.erode(inside, np.ones((2 * near + 1, 2 * near + 1), dtype=np.uint8))
    result[box] = (inside != core)[1:-1, 1:-1]
    return result


class _BoundaryEval(COCOeval):
    """COCO's evaluation with the smaller of the two IoUs."""

    def _prepare(self) -> None:
        super()._prepare()
        for annotation in itertools.chain(*self._gts.values(), *self._dts.values()):
            if "boundary" not in annotation:
                annotation["boundary"] = _boundary_rle(annotation["segmentation"])

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        mask_iou = super().computeIoU(imgId, catId)
        if len(mask_iou) == 0:
            return mask_iou
        truth, predicted = self._gts[imgId, catId], self._dts[imgId, catId]
        # As for masks: the best come first.
        order = np.argsort([-prediction["score"] for prediction in predicted], kind="mergesort")
        best = [predicted[i] for i in order[: self.params.maxDets[-1]]]
        crowds = [int(annotation["iscrowd"]) for annotation in truth]
        boundaries = [[annotation["boundary"] for annotation in annotations] for annotations in (best, truth)]
        return np.minimum(mask_iou, mask_util.iou(*boundaries, crowds))


def _boundary_rle(rle: Rle) -> Rle:
    return mask_util.encode(np.asfortranarray(boundary_of(mask_util.decode(rle)), dtype=np.uint8))
