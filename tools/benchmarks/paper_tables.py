#!/usr/bin/env python
"""Print the paper's Tables 1 to 3: parameters, FLOPs and speed of its models, here and in the paper.

    python tools/benchmarks/paper_tables.py                       # parameters and FLOPs alone, in a minute
    python tools/benchmarks/paper_tables.py 1 2 --published-weights --images 5000
    python tools/benchmarks/paper_tables.py 1 --drawn 10          # no data, no weights

Speed follows the paper's protocol: one image at a time, the average over the validation set (or its first --images),
post-processing included and reading images excluded. --drawn takes images of noise of the data set's average size
instead. Without --published-weights, weights are random, and 25 queries are made sure of a class, because without a
sure query there is nothing to post-process. The paper measured on one V100. Scores are quoted from it, not measured
here; `train_net.py --eval-only` does that.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import write_json
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

from fake_models import build_without_weights  # noqa: E402
from model_counts import count_operations, count_parameters  # noqa: E402

from mask2former.engine import Trainer, load_config  # noqa: E402
from mask2former.inference.weights import load_whole_model  # noqa: E402
from mask2former.weights import zoo  # noqa: E402

CONFIGS = REPOSITORY / "configs"
TABLES: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
COUNTED = {"M parameters": 1, "GFLOPs": 0, "fps": 1}  # decimals
SURE_QUERIES = 25
WARM_UP = 3


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--images", type=int, default=0, metavar="N", help="measure the speed on N of the validation set"
    )
    images.add_argument("--drawn", type=int, default=0, metavar="N", help="measure the speed on N images of noise")
    parser.add_argument("--published-weights", action="store_true", help="download them; default: random ones")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every configuration")
    args = parser.parse_args()
    unknown = [table for table in args.tables if table not in TABLES]
    if unknown:
        parser.error(f"there is no table {', '.join(unknown)}; expected some of {', '.join(TABLES)}")
    figures = {}
    for name in args.tables or TABLES:
        table = TABLES[name]
        figures[name] = [measure_row(row, tuple(table["size"]), args) for row in table["rows"]]
        print(f"\n### Table {name}: {table['title']}\n\n{markdown_table(table, figures[name])}", flush=True)
    write_json(args.json, figures)


def measure_row(row: dict[str, Any], size: tuple[int, int], args: argparse.Namespace) -> dict[str, float]:
    """What is measured here of a row's model, on images of ``size`` (height, width)."""
    cfg = load_config(str(CONFIGS / row["config"]), args.opts)
    model = build_without_weights(cfg)
    operations = count_operations(model, size, as_published=True)["total"]
    measured = {"M parameters": count_parameters(model) / 1e6, "GFLOPs": sum(operations.values()) / 1e9}
    inputs: Iterable[list[dict[str, Any]]] = ()
    if args.drawn:
        inputs = ([{"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)}] for _ in range(args.drawn))
    elif args.images:
        inputs = itertools.islice(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]), args.images)
    if args.drawn or args.images:
        measured["fps"] = measure_speed(prepare_model(cfg, row, args.published_weights), inputs)
    return measured


def prepare_model(cfg: CfgNode, row: dict[str, Any], published_weights: bool) -> nn.Module:
    """The model with its published weights, or with random ones and some sure queries.

    Raises:
        SystemExit: if no weights were published.
    """
    model: Any = build_model(cfg).eval()
    if not published_weights:
        model.sem_seg_head.predictor.register_forward_hook(make_queries_sure)
        return model
    entry = next((entry for entry in zoo().values() if entry.config == f"configs/{row['config']}"), None)
    if entry is None:
        sys.exit(f"No weights were published for configs/{row['config']}; leave --published-weights out.")
    load_whole_model(model, entry.checkpoint_file())
    return model


def make_queries_sure(module: nn.Module, args: Any, output: dict[str, Any]) -> None:
    """Make the first queries sure of a class each, and the others of none; a hook after the Transformer decoder."""
    logits = torch.full_like(output["pred_logits"], -10.0)
    num_queries, num_classes = logits.shape[1], logits.shape[2] - 1
    sure = torch.arange(min(SURE_QUERIES, num_queries))
    logits[:, :, -1] = 10.0
    logits[:, sure, -1] = -10.0
    logits[:, sure, sure % num_classes] = 10.0
    output["pred_logits"] = logits


def measure_speed(model: nn.Module, inputs: Iterable[list[dict[str, Any]]]) -> float:
    """Images a second over all inputs, of one image each; the first is used to warm up, too."""
    on_gpu = next(model.parameters()).is_cuda
    seconds, count = 0.0, 0
    with torch.inference_mode():
        for number, batch in enumerate(inputs):
            for _ in range(WARM_UP if number == 0 else 0):
                model(batch)
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            model(batch)
            if on_gpu:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
            count += 1
    return count / seconds


def markdown_table(table: dict[str, Any], measured: Sequence[dict[str, float]]) -> str:
    """The paper's scores, and what is counted, here and in the paper."""
    columns = ["method", "backbone", *(f"{metric} (paper)" for metric in table["metrics"])]
    counted = [name for name in COUNTED if name in measured[0]]
    columns += [title for name in counted for title in (name, f"{name} (paper)")]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * 2 + "---:|" * (len(columns) - 2)]
    for row, here in zip(table["rows"], measured, strict=True):
        cells = [row["method"], row["backbone"], *(_number(row.get(metric), 1) for metric in table["metrics"])]
        for name in counted:
            cells += [_number(here[name], COUNTED[name]), _number(row.get(name), COUNTED[name])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


if __name__ == "__main__":
    main()
