#!/usr/bin/env python
"""Draw predictions that an evaluation has saved beside the ground truth: the prediction left, the truth right.

    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS W OUTPUT_DIR out
    python tools/visualize_predictions.py --config-file FILE --predictions out/inference --output out/pictures
    python tools/visualize_predictions.py --config-file FILE --predictions out/inference --output out/worst \
      --choose worst --number 25 --sheet

Best and worst are measured image by image: by the PQ, the mask AP or the mIoU of the image's classes.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data import read_image
from mask2former.data.dataset_mappers import MaskFormerInstanceDatasetMapper, MaskFormerPanopticDatasetMapper
from mask2former.engine.setup import load_evaluation_config
from mask2former.evaluation import SavedPredictions, evaluate_groups, find_predictions
from mask2former.evaluation.sem_seg_evaluation import read_class_map
from mask2former.inference.runs import run_tool
from mask2former.visualization import (
    Task,
    draw_ground_truth,
    draw_instances,
    draw_panoptic,
    draw_semantic,
    save_drawings,
)

METRICS = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    cfg = load_evaluation_config(args.config_file, args.opts, args.dataset)
    dataset_name = cfg.DATASETS.TEST[0]
    task = args.task or next(task for task in get_args(Task) if task in find_predictions(args.predictions))
    records = DatasetCatalog.get(dataset_name)
    predictions = SavedPredictions(dataset_name, args.predictions, task)
    max_detections = max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
    chosen = choose(
        records,
        args.choose,
        args.number,
        args.seed,
        lambda: score_images(records, predictions, args.predictions, max_detections),
    )
    metadata = MetadataCatalog.get(dataset_name)

    def drawings() -> Iterator[tuple[str, np.ndarray, str]]:
        for rank, (record, score) in enumerate(chosen):
            text = record["file_name"] if score is None else f"{METRICS[task]} {score:.1f}, {record['file_name']}"
            drawing = draw_pair(record, predictions, metadata, args.threshold)
            yield f"{rank:04d}_{Path(record['file_name']).stem}", drawing, text

    save_drawings(drawings(), args.output, sheet=args.sheet)


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="configuration of the run; registers the data set")
    parser.add_argument("--predictions", required=True, type=Path, help="the run's OUTPUT_DIR/inference")
    parser.add_argument("--output", required=True, type=Path, help="folder of the pictures")
    parser.add_argument("--dataset", help="name of the data set; the first of DATASETS.TEST by default")
    parser.add_argument("--task", choices=get_args(Task), help="default: the first of these that was saved")
    parser.add_argument("--choose", choices=("random", "worst", "best"), default="random", help="which images")
    parser.add_argument("--number", type=int, default=16, help="of images (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice (default: 0)")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of drawn instances (default: 0.5)")
    parser.add_argument("--sheet", action="store_true", help="also write all of them on one page, sheet.jpg")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the configuration")
    return parser


def choose(
    records: list[Record], how: str, number: int, seed: int, score: Callable[[], dict[Any, float]]
) -> list[tuple[Record, float | None]]:
    """Choose images, with their scores where these decide; images of which the metric says nothing come last.

    Args:
        records: dataset dicts.
        how: "random", in the order of the data set; "worst" or "best", in the order of their scores.
        number: of images.
        seed: of the random choice.
        score: computes the scores in percent, by image id.
    """
    if how == "random":
        indices = np.random.default_rng(seed).permutation(len(records))[:number]
        return [(records[i], None) for i in sorted(indices.tolist())]
    scores, sign = score(), 1 if how == "worst" else -1

    def rank(record: Record) -> tuple[bool, float]:
        value = scores[record["image_id"]]
        return math.isnan(value), sign * value

    return [(record, scores[record["image_id"]]) for record in sorted(records, key=rank)[:number]]


def score_images(
    records: list[Record], predictions: SavedPredictions, folder: Path, max_detections: int
) -> dict[Any, float]:
    """The metric of every image on its own, in percent, by image id."""
    groups = {record["image_id"]: [record["image_id"]] for record in records}
    metrics = evaluate_groups(predictions.dataset_name, folder, groups, max_detections, [predictions.task])
    return {image_id: values[METRICS[predictions.task]] for image_id, values in metrics.items()}


def draw_pair(record: Record, predictions: SavedPredictions, metadata: Any, threshold: float) -> np.ndarray:
    """The prediction and the ground truth side by side, a white line between them: (H, 2 W + 4, 3) uint8 RGB."""
    image = read_image(record["file_name"], "RGB")
    size = (image.shape[0], image.shape[1])
    if predictions.task == "panoptic":
        predicted = draw_panoptic(image, *predictions.panoptic(record), metadata)
    elif predictions.task == "semantic":
        predicted = draw_classes(image, predictions.semantic(record, size), metadata)
    else:
        predicted = draw_instances(image, *predictions.instances(record, size, threshold), metadata)
    line = np.full((size[0], 4, 3), 255, dtype=np.uint8)
    return np.concatenate([predicted, line, draw_truth(record, image, predictions.task, metadata)], axis=1)


def draw_truth(record: Record, image: np.ndarray, task: str, metadata: Any) -> np.ndarray:
    """The annotation of one task."""
    if task == "semantic":
        return draw_classes(image, read_class_map(record, metadata), metadata)
    mapper_class = MaskFormerPanopticDatasetMapper if task == "panoptic" else MaskFormerInstanceDatasetMapper
    mapper = mapper_class(is_train=True, augmentations=[], image_format="RGB")
    return draw_ground_truth(mapper(record), metadata)


def draw_classes(image: np.ndarray, classes: np.ndarray, metadata: Any) -> np.ndarray:
    """A map (H, W) of classes, in which the number of classes stands for none."""
    return draw_semantic(image, np.where(classes == len(metadata.stuff_classes), -1, classes), metadata)


if __name__ == "__main__":
    run_tool(main)
