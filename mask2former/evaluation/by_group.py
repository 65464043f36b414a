"""Metrics of parts of a data set, from predictions that an evaluation has saved."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from mask2former.evaluation.average_precision import CocoComparison, read_annotations
from mask2former.evaluation.panoptic_evaluation import match_segments, sum_pq, summarize_pq
from mask2former.evaluation.saved_predictions import find_predictions, read_predictions
from mask2former.evaluation.sem_seg_evaluation import saved_confusions, summarize_miou

__all__ = ["evaluate_groups"]

Groups = Mapping[str, Collection[Any]]
Metrics = dict[str, dict[str, float]]


def evaluate_groups(
    dataset_name: str,
    output_folder: str | Path,
    groups: Groups,
    max_detections: int = 100,
    tasks: Collection[str] = ("instance", "panoptic", "semantic"),
) -> Metrics:
    """Compute the metrics of each group of images.

    Args:
        dataset_name: the registered data set that was evaluated.
        output_folder: where ``build_evaluator`` saved the predictions (``OUTPUT_DIR/inference``).
        groups: image ids of each group; groups may overlap.
        max_detections: instances an image that count for AP; more than 100 where the model may give more.
        tasks: those whose predictions are looked at.

    Returns:
        For each group, in percent: "AP" and "AP50" of the masks, "PQ", "SQ", "RQ" of all classes, with "_th" of things
        and with "_st" of stuff, and "mIoU"; those of which there are predictions.

    Raises:
        FileNotFoundError: if the folder has no predictions.
        ValueError: if there are instances of LVIS, whose AP is not defined for parts of it.
    """
    folder, metadata = Path(output_folder), MetadataCatalog.get(dataset_name)
    metrics: Metrics = {group: {} for group in groups}
    found = find_predictions(folder)
    if "instance" in found and metadata.get("evaluator_type") == "lvis":
        raise ValueError(f"{dataset_name}: LVIS' AP is defined for the whole data set only, not for parts of it.")
    for task, evaluate in (
        ("instance", lambda p: _mask_ap(p, metadata, groups, max_detections)),
        ("panoptic", lambda p: _panoptic_quality(p, folder, metadata, groups)),
        ("semantic", lambda p: _miou(p, dataset_name, groups)),
    ):
        if task in found and task in tasks:
            for group, values in evaluate(read_predictions(found[task])).items():
                metrics[group].update(values)
    return metrics


def _mask_ap(results: list[dict[str, Any]], metadata: Metadata, groups: Groups, max_detections: int) -> Metrics:
    comparison = CocoComparison(read_annotations(metadata.json_file), results, "segm")
    return {group: _group_ap(comparison, image_ids, max_detections) for group, image_ids in groups.items()}


def _group_ap(comparison: CocoComparison, image_ids: Collection[Any], max_detections: int) -> dict[str, float]:
    evaluation = comparison.evaluate(max_detections=(1, 10, max_detections), image_ids=image_ids)
    # COCO says -1 where there is no object to find.
    ap, ap50 = (100 * value if value >= 0 else float("nan") for value in list(evaluation.stats[:2]))
    return {"AP": ap, "AP50": ap50}


def _panoptic_quality(predictions: dict[str, Any], folder: Path, metadata: Metadata, groups: Groups) -> Metrics:
    truth = json.loads(Path(metadata.panoptic_json).read_text())
    stats = match_segments(predictions["annotations"], folder / "panoptic_predictions", truth, metadata.panoptic_root)
    return {
        group: summarize_pq(sum_pq(stats[image_id] for image_id in image_ids), truth["categories"])
        for group, image_ids in groups.items()
    }


def _miou(predictions: list[dict[str, Any]], dataset_name: str, groups: Groups) -> Metrics:
    metadata = MetadataCatalog.get(dataset_name)
    names = metadata.stuff_classes
    # Sums alone: the matrices of all images would need gigabytes where there are many classes.
    sums = {group: np.zeros((len(names) + 1,) * 2, dtype=np.int64) for group in groups}
    groups_of = defaultdict(list)
    for group, image_ids in groups.items():
        for image_id in image_ids:
            groups_of[image_id].append(group)
    records = [record for record in DatasetCatalog.get(dataset_name) if record["image_id"] in groups_of]
    for record, confusion in saved_confusions(predictions, records, metadata):
        for group in groups_of[record["image_id"]]:
            sums[group] += confusion
    return {group: {"mIoU": summarize_miou(confusion, names)["mIoU"]} for group, confusion in sums.items()}
