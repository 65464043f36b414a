#!/usr/bin/env python
"""Print a Markdown table of the metrics of each kind of image, from predictions that ``train_net.py`` has saved.

Example::

    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS W OUTPUT_DIR out
    python tools/evaluate_by_group.py --config-file FILE --groups kinds.json --predictions out/inference

``kinds.json`` is a list of {"file": name of an image, "kind": its group}.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import json
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from mask2former.engine.setup import load_evaluation_config
from mask2former.evaluation import evaluate_groups
from mask2former.inference.runs import run_tool

COLUMNS = {
    "mask AP": "AP",
    "AP50": "AP50",
    "PQ": "PQ",
    "PQ things": "PQ_th",
    "SQ things": "SQ_th",
    "RQ things": "RQ_th",
    "mIoU": "mIoU",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="configuration of the run; registers the data set")
    parser.add_argument("--predictions", required=True, type=Path, help="the run's OUTPUT_DIR/inference")
    parser.add_argument("--groups", required=True, type=Path, help='JSON list of {"file": ..., "kind": ...}')
    parser.add_argument("--dataset", help="name of the data set; the first of DATASETS.TEST by default")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the configuration")
    args = parser.parse_args()
    cfg = load_evaluation_config(args.config_file, args.opts, args.dataset)
    dataset_name = cfg.DATASETS.TEST[0]
    groups = group_images(DatasetCatalog.get(dataset_name), read_kinds(args.groups))
    metrics = evaluate_groups(dataset_name, args.predictions, groups, max(100, cfg.TEST.DETECTIONS_PER_IMAGE))
    print(markdown_table(groups, metrics))


def read_kinds(file: Path) -> list[dict[str, Any]]:
    """The list of {"file": name of an image, "kind": its group}.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        kinds: list[dict[str, Any]] = [
            {key: entry[key] for key in ("file", "kind")} for entry in json.loads(file.read_text())
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{file} is no JSON list of {{"file": name of an image, "kind": its group}}: {error!r}'
        ) from error
    return kinds


def group_images(records: list[dict[str, Any]], kinds: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Sort image ids by kind; "all" comes first.

    Args:
        records: dataset dicts.
        kinds: {"file": path or name of an image, "kind": group} for each of them.

    Raises:
        ValueError: if the kind of an image is not listed.
    """
    kind_of = {os.path.basename(entry["file"]): entry["kind"] for entry in kinds}
    groups: dict[str, list[Any]] = {"all": [record["image_id"] for record in records]}
    for record in records:
        name = os.path.basename(record["file_name"])
        if name not in kind_of:
            raise ValueError(
                f"The list of groups has no entry for {name}; it has {len(kind_of)}, such as "
                f"{next(iter(kind_of), None)}."
            )
        groups.setdefault(kind_of[name], []).append(record["image_id"])
    return groups


def markdown_table(groups: dict[str, list[Any]], metrics: dict[str, dict[str, float]]) -> str:
    """Write one row a group and one column a metric."""
    columns = {title: key for title, key in COLUMNS.items() if key in metrics["all"]}
    lines = [
        "| images | number | " + " | ".join(columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for group, image_ids in groups.items():
        values = " | ".join(f"{metrics[group][key]:.1f}" for key in columns.values())
        lines.append(f"| {group} | {len(image_ids)} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_tool(main)
