#!/usr/bin/env python
"""Times what an evaluation does beside the model: run lengths of masks, AP and PQ.

    python tools/benchmarks/evaluation.py
    python tools/benchmarks/evaluation.py --images 500 --json output/evaluation.json

Compares hotcoco, which evaluators take where it is installed, with the references pycocotools and panopticapi, on
pictures of random ellipses. The two take turns; times are medians of processor seconds.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools.coco import COCO

from mask2former.evaluation.average_precision import evaluate_coco
from mask2former.evaluation.backend import has_hotcoco
from mask2former.evaluation.panoptic_evaluation import count_matches

SIZE = 480, 640
NUM_CLASSES, OBJECTS, PREDICTIONS = 80, 12, 100

Job = Callable[[], object]


def main() -> None:
    """Compare, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if not has_hotcoco():
        parser.error("hotcoco is not installed: pip install 'mask2former[eval]'")
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(args.images, Path(folder))
        figures = {name: take_turns(*pair, rounds=args.rounds) for name, pair in jobs.items()}
    print(f"{args.images} images of {SIZE[1]} x {SIZE[0]}, seconds of processor time")
    print(f"{'':24} {'hotcoco':>9} {'reference':>9} {'ratio':>6}")
    for name, (ours, reference) in figures.items():
        print(f"{name:24} {ours:9.3f} {reference:9.3f} {reference / ours:6.1f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"images": args.images, "seconds": figures}, indent=2))


def make_jobs(images: int, folder: Path) -> dict[str, tuple[Job, Job]]:
    """What is timed, by hotcoco and by the reference."""
    import hotcoco.mask

    rng = np.random.default_rng(0)
    masks = [draw_ellipse(rng) for _ in range(PREDICTIONS)]
    truth, results = make_instances(images, rng)
    panoptic = make_panoptic(images, rng, folder)
    return {
        f"run lengths, {PREDICTIONS} masks": (
            lambda: [hotcoco.mask.encode(mask) for mask in masks],
            lambda: [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks],
        ),
        "mask AP": pair(lambda backend: evaluate_coco(truth, results, "segm", backend=backend)),
        "box AP": pair(lambda backend: evaluate_coco(truth, results, "bbox", backend=backend)),
        "PQ": pair(lambda backend: count_matches(*panoptic, backend=backend)),
    }


def pair(evaluate: Callable[[str], object]) -> tuple[Job, Job]:
    """The same job by hotcoco and by the reference."""
    return lambda: evaluate("hotcoco"), lambda: evaluate("reference")


def take_turns(*jobs: Job, rounds: int) -> list[float]:
    """Median processor seconds of each."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, seconds in zip(jobs, times, strict=True):
            start = time.process_time()
            job()
            seconds.append(time.process_time() - start)
    return [statistics.median(seconds) for seconds in times]


def draw_ellipse(rng: np.random.Generator) -> np.ndarray:
    """A mask (H, W) bool."""
    mask = np.zeros(SIZE, np.uint8)
    centre = int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0]))
    axes = int(rng.integers(8, 120)), int(rng.integers(8, 120))
    cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, (1,), -1)
    return mask.astype(bool)


def make_instances(images: int, rng: np.random.Generator) -> tuple[COCO, list[dict[str, Any]]]:
    """Annotations, and predictions of which the first of each picture are the objects, moved a little."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(images):
        masks = [draw_ellipse(rng) for _ in range(PREDICTIONS)]
        for number, mask in enumerate(masks):
            category_id = number % NUM_CLASSES
            if number < OBJECTS:
                annotation = as_object(mask, image_id, category_id)
                annotations.append({**annotation, "id": len(annotations) + 1, "iscrowd": 0})
                mask = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            results.append({**as_object(mask, image_id, category_id), "score": float(rng.random())})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in range(images)],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": str(category_id)} for category_id in range(NUM_CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, results


def as_object(mask: np.ndarray, image_id: int, category_id: int) -> dict[str, Any]:
    """An annotation in COCO's format."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    place = {"image_id": image_id, "category_id": category_id}
    return {**place, "segmentation": rle, "bbox": mask_util.toBbox(rle).tolist(), "area": int(mask_util.area(rle))}


def make_panoptic(
    images: int, rng: np.random.Generator, folder: Path
) -> tuple[list[dict[str, Any]], Path, dict[str, Any], Path]:
    """Predictions, their folder, annotations and their folder: segments, and the same moved a little."""
    sets: dict[str, list[dict[str, Any]]] = {"predictions": [], "truth": []}
    for image_id in range(images):
        ids = np.full(SIZE, 1)
        for number in range(2, OBJECTS + 2):
            ids[draw_ellipse(rng)] = number
        for name, content in sets.items():
            file_name = f"{image_id}.png"
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(ids)).save(folder / name / file_name)
            segments = [
                {"id": i, "category_id": i, "iscrowd": 0, "area": int((ids == i).sum())}
                for i in np.unique(ids).tolist()
            ]
            content.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
            ids = np.roll(ids, rng.integers(-4, 5, 2), (0, 1))
    truth = {
        "images": [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in range(images)],
        "annotations": sets["truth"],
        "categories": [{"id": i, "name": str(i), "isthing": 1} for i in range(OBJECTS + 2)],
    }
    return sets["predictions"], folder / "predictions", truth, folder / "truth"


if __name__ == "__main__":
    main()
