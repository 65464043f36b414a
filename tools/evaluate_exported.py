#!/usr/bin/env python
"""Evaluate exported models on a data set as ``train_net.py --eval-only`` evaluates checkpoints, and compare them.

Example::

    python tools/evaluate_exported.py --config-file FILE model.onnx model_int8.onnx [--opts KEY VALUE ...]

Each file has raw outputs (``--with-postprocessing none``). What comes before and after the network, tiles included, is
done as the configuration says. With several files, the table shows how far each is from the first.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former.engine import Trainer, load_config
from mask2former.export import load_exported, use_exported_network
from mask2former.inference.runs import run_tool

# Of each evaluator's metrics, those that sum it up.
HEADLINES = ("PQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="configuration that was exported; names the data set")
    parser.add_argument("files", nargs="+", type=Path, help="exported models; the first is what others are compared to")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the configuration")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = load_config(args.config_file, args.opts)
    results = {str(path): evaluate(cfg, path) for path in args.files}
    print(markdown_table(results))


def evaluate(cfg: CfgNode, path: Path) -> dict[str, float]:
    """The headline metrics of an exported model on the first of ``DATASETS.TEST``, in percent."""
    model = build_model(cfg)
    use_exported_network(model, load_exported(path))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    results = Trainer.test(cfg, model)
    return {
        f"{task}/{name}": value
        for task, metrics in results.items()
        for name, value in metrics.items()
        if name in HEADLINES
    }


def markdown_table(results: dict[str, dict[str, float]]) -> str:
    """One row a file and one column a metric; below the first file, changes from it in brackets."""
    first = next(iter(results.values()))
    lines = ["| file | " + " | ".join(first) + " |", "|---|" + "---:|" * len(first)]
    for index, (path, metrics) in enumerate(results.items()):
        cells = []
        for name, value in metrics.items():
            change = value - first[name]
            cells.append(f"{value:.2f}" + ("" if index == 0 or math.isnan(change) else f" ({change:+.2f})"))
        lines.append(f"| {path} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_tool(main)
