#!/usr/bin/env python
"""Panoptic quality of semantic results, from predictions that ``train_net.py`` has saved (MaskFormer's PQ^St).

Example::

    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS W OUTPUT_DIR out
    python tools/evaluate_pq_for_semantic_segmentation.py --dataset-name ade20k_sem_seg_val \
        --json-file out/inference/sem_seg_predictions.json

Every class of an image counts as one segment. ``TEST.SEMANTIC_PQ True`` computes the same during an evaluation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mask2former  # noqa: F401  registers the official data sets
from mask2former.data import check_registered
from mask2former.engine import load_config
from mask2former.evaluation import evaluate_saved_semantic_pq
from mask2former.inference.runs import run_tool


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-name", default="ade20k_sem_seg_val", help="as registered (default: %(default)s)")
    parser.add_argument("--json-file", required=True, type=Path, help="the run's sem_seg_predictions.json")
    parser.add_argument("--config-file", default="", help="configuration that registers a data set of your own")
    args = parser.parse_args(arguments)
    load_config(args.config_file)
    check_registered([args.dataset_name])
    metrics = evaluate_saved_semantic_pq(args.dataset_name, args.json_file)
    for name, value in metrics.items():
        print(f"{name} {value:.2f}")


if __name__ == "__main__":
    run_tool(main)
