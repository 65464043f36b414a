#!/usr/bin/env python
"""Print the boundary AP of instances that an evaluation has saved, from COCO's files alone.

    python tools/evaluate_coco_boundary_ap.py --gt-json-file datasets/coco/annotations/instances_val2017.json \
      --dt-json-file OUTPUT_DIR/inference/coco_instances_results.json

`train_net.py --eval-only ... TEST.BOUNDARY_AP True` computes the same while it evaluates, without a pass of its own.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import create_small_table

from mask2former.evaluation.average_precision import read_annotations
from mask2former.evaluation.boundary_evaluation import boundary_ap
from mask2former.evaluation.saved_predictions import read_predictions
from mask2former.inference.runs import run_tool


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the command line; returns the metrics in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gt-json-file", required=True, type=Path, help="annotations")
    parser.add_argument("--dt-json-file", required=True, type=Path, help="results, with masks as run lengths")
    parser.add_argument("--max-detections", type=int, default=100, help="of an image and class (default: 100)")
    args = parser.parse_args(argv)
    truth = read_annotations(str(args.gt_json_file))
    results = read_predictions(args.dt_json_file)
    if unknown := {result.get("image_id") for result in results} - truth.imgs.keys():
        raise ValueError(
            f"{args.dt_json_file} has results of {len(unknown)} images that {args.gt_json_file} does not have, such as "
            f"{next(iter(unknown))}; give the annotations of the data set that was evaluated."
        )
    metrics = boundary_ap(truth, results, args.max_detections)
    print(create_small_table(metrics))
    return metrics


if __name__ == "__main__":
    run_tool(main)
