"""COCO's average precision and recall."""

import contextlib
import io
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO

from mask2former.evaluation.backend import use_hotcoco

__all__ = ["evaluate_coco"]


def evaluate_coco(
    truth: COCO,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    *,
    max_detections: Sequence[int] = (1, 10, 100),
    image_ids: Collection[Any] | None = None,
    with_classes: bool = True,
    backend: str = "auto",
    show: bool = False,
) -> Any:
    """Compare detections with annotations.

    Args:
        truth: the annotations.
        results: in COCO's format; they stay as they are.
        iou_type: "segm" or "bbox". For "segm" the size of an object, small, medium or large, is that of its mask.
        max_detections: three numbers of detections of an image that count: AR is computed for each, AP for the last.
        image_ids: those that count; None for all.
        with_classes: False compares every detection with every annotation.
        backend: see :func:`~mask2former.evaluation.backend.use_hotcoco`.
        show: print the twelve figures.

    Returns:
        A ``COCOeval`` with ``eval`` ("precision" and "recall") and the twelve ``stats``, of pycocotools or hotcoco.
    """
    # Without boxes, sizes are those of the masks. Both libraries write into what they are given.
    results = [{k: v for k, v in result.items() if iou_type == "bbox" or k != "bbox"} for result in results]
    stdout = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        evaluation: Any
        if use_hotcoco(backend, truth.imgs):
            import hotcoco

            warnings.filterwarnings("ignore", "hotcoco: ")  # of what is asked for here, such as other max_dets
            annotations = hotcoco.COCO(truth.dataset)
            evaluation = hotcoco.COCOeval(annotations, annotations.load_res(results), iou_type)
        else:
            evaluation = COCOevalMaxDets(truth, truth.loadRes(results) if results else COCO(), iou_type)
        evaluation.params.maxDets = list(max_detections)
        evaluation.params.useCats = int(with_classes)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(stdout if show else sys.stdout):
            evaluation.summarize()
    return evaluation
