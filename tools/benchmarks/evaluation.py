#!/usr/bin/env python
"""Times what an evaluation does beside the model: run lengths of masks, AP and PQ.

    python tools/benchmarks/evaluation.py
    python tools/benchmarks/evaluation.py --images 500 --json output/evaluation.json

Compares hotcoco, which evaluators take where it is installed, with the references pycocotools and panopticapi, on
pictures of random ellipses. The two take turns; times are medians of processor seconds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from contenders import write_json
from drawn_coco import PREDICTIONS, SIZE, draw_ellipse, make_instances, make_panoptic

from mask2former.evaluation.average_precision import CocoComparison
from mask2former.evaluation.backend import has_hotcoco
from mask2former.evaluation.panoptic_evaluation import count_matches

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
    write_json(args.json, {"images": args.images, "seconds": figures})


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
        "mask AP": pair(lambda backend: CocoComparison(truth, results, "segm", backend=backend).evaluate()),
        "box AP": pair(lambda backend: CocoComparison(truth, results, "bbox", backend=backend).evaluate()),
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


if __name__ == "__main__":
    main()
