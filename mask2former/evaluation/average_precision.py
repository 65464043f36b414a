"""COCO's average precision and recall."""

import contextlib
import io
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO

from mask2former.evaluation.backend import use_hotcoco

__all__ = [
    "CocoComparison",
    "mean_precision",
    "number_annotations",
    "read_annotations",
    "summarize_precision",
    "without_boxes",
]


class CocoComparison:
    """Detections and annotations, to be compared as often as there are groups of images.

    Args:
        truth: the annotations.
        results: in COCO's format; they stay as they are.
        iou_type: "segm" or "bbox". For "segm" the size of an object, small, medium or large, is that of its mask.
        backend: see :func:`~mask2former.evaluation.backend.use_hotcoco`.
    """

    def __init__(self, truth: COCO, results: Sequence[dict[str, Any]], iou_type: str, *, backend: str = "auto") -> None:
        # Copies, because both libraries write into what they are given.
        results = [dict(result) for result in results] if iou_type == "bbox" else without_boxes(results)
        self._iou_type = iou_type
        self._truth: Any = truth
        if use_hotcoco(backend, [*truth.imgs, *truth.cats]):
            import hotcoco

            self._evaluation: Any = hotcoco.COCOeval
            self._truth = hotcoco.COCO(truth.dataset)
            self._results = self._truth.load_res(results)
        else:
            self._evaluation = COCOevalMaxDets
            with contextlib.redirect_stdout(io.StringIO()):
                self._results = truth.loadRes(results) if results else COCO()

    def evaluate(
        self,
        *,
        max_detections: Sequence[int] = (1, 10, 100),
        image_ids: Collection[Any] | None = None,
        with_classes: bool = True,
        show: bool = False,
    ) -> Any:
        """Match and count.

        Args:
            max_detections: three numbers of detections of an image that count: AR is of each, AP of the last.
            image_ids: those that count; None for all.
            with_classes: False compares every detection with every annotation.
            show: print the twelve figures.

        Returns:
            A ``COCOeval`` with ``eval`` ("precision" and "recall") and the twelve ``stats``, of pycocotools or hotcoco.
        """
        stdout = sys.stdout
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "hotcoco: ")  # of what is asked for here, such as other max_dets
            evaluation = self._evaluation(self._truth, self._results, self._iou_type)
            evaluation.params.maxDets = list(max_detections)
            evaluation.params.useCats = int(with_classes)
            if image_ids is not None:
                evaluation.params.imgIds = sorted(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            with contextlib.redirect_stdout(stdout if show else sys.stdout):
                evaluation.summarize()
        return evaluation


def read_annotations(json_file: str) -> COCO:
    """Read COCO's annotations, without what pycocotools prints of it.

    Raises:
        ValueError: they are none.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(json_file)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{json_file} is no JSON of COCO's annotations: {error}") from error
    number_annotations(truth)
    return truth


def number_annotations(truth: COCO) -> None:
    """Number annotations from 1, in place, if one has the id 0, which pycocotools takes for no match."""
    if 0 not in truth.anns:
        return
    for number, annotation in enumerate(truth.dataset["annotations"], 1):
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


def without_boxes(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of results in COCO's format that have masks only, so that COCO's sizes are those of the masks."""
    return [{key: value for key, value in result.items() if key != "bbox"} for result in results]


def mean_precision(precision: np.ndarray) -> float:
    """The mean of a ``COCOeval``'s precisions, which are -1 where there is no object; in percent, NaN of none."""
    present = precision[precision > -1]
    return 100 * float(present.mean()) if present.size else float("nan")


def summarize_precision(precision: np.ndarray) -> dict[str, float]:
    """Average a ``COCOeval``'s precisions over all objects, at two thresholds, and over objects by their size.

    Args:
        precision: (10 IoU thresholds, recalls, classes, 4 areas); -1 where there is no object.

    Returns:
        "AP", "AP50", "AP75", and of small, medium and large objects "APs", "APm", "APl"; in percent, NaN of none.
    """
    parts = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    parts |= {f"AP{size}": precision[..., index] for index, size in enumerate("sml", 1)}
    return {name: mean_precision(part) for name, part in parts.items()}
