#!/usr/bin/env python
"""Write the tables of MODEL_ZOO.md from mask2former/weights/model_zoo.json; run it after a change of either.

python tools/write_model_zoo.py
"""

from collections.abc import Iterable
from pathlib import Path

from mask2former.weights import ZooEntry, zoo

PAGE = Path(__file__).resolve().parents[1] / "MODEL_ZOO.md"
BEGIN = "<!-- Tables written by tools/write_model_zoo.py: begin -->\n"
END = "<!-- Tables written by tools/write_model_zoo.py: end -->\n"

DATA_SETS = {
    "coco": "COCO",
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K",
    "mapillary-vistas": "Mapillary Vistas",
}
# How each task's metrics are called in the paper, in its order; by their names in the JSON.
METRICS = {
    "panoptic": {"PQ": "PQ", "AP": "AP<sup>Th</sup><sub>pan</sub>", "mIoU": "mIoU<sub>pan</sub>"},
    "instance": {"AP": "AP", "AP50": "AP50", "Boundary AP": "AP<sup>boundary</sup>"},
    "semantic": {"mIoU": "mIoU (s.s.)", "mIoU (ms+flip)": "mIoU (m.s.)"},
}
# The paper's order, from small to large.
BACKBONES = ["R50", "R101", "Swin-T", "Swin-S", "Swin-B", "Swin-B-IN21k", "Swin-L-IN21k"]


def main() -> None:
    """Run the command line."""
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
    print(f"{len(official_entries())} models -> {PAGE}")


def with_tables(page: str) -> str:
    """The page with today's tables between its markers.

    Raises:
        ValueError: a marker is not there.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE.name} must have the lines {BEGIN.strip()} and {END.strip()} once each.")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + write_tables(official_entries()) + END + rest.partition(END)[2]


def official_entries() -> list[ZooEntry]:
    """The models of the official release, without those of this repository."""
    return [entry for entry in zoo().values() if "://" in entry.checkpoint]


def write_tables(entries: Iterable[ZooEntry]) -> str:
    """A table for each data set and task, as Markdown.

    Raises:
        ValueError: a data set, task, backbone or metric has no place in the tables.
    """
    groups: dict[tuple[str, str], list[ZooEntry]] = {(data, task): [] for data in DATA_SETS for task in METRICS}
    for entry in entries:
        data, task, backbone = entry.name.split("/")
        if (data, task) not in groups or backbone not in BACKBONES or not entry.metrics.keys() <= METRICS[task].keys():
            raise ValueError(f"{entry.name} ({', '.join(entry.metrics)}) has no place in the tables; add it to them.")
        groups[data, task].append(entry)
    return "".join(_table(data, task, found) for (data, task), found in groups.items() if found)


def _table(data: str, task: str, entries: list[ZooEntry]) -> str:
    metrics = {key: title for key, title in METRICS[task].items() if any(key in entry.metrics for entry in entries)}
    schedule = "epochs" if entries[0].epochs else "iterations"
    titles = ["backbone", schedule, *metrics.values(), "name", "files"]
    lines = [
        f"\n### {DATA_SETS[data]}: {task} segmentation\n",
        f"| {' | '.join(titles)} |",
        f"|---|{'---:|' * (1 + len(metrics))}---|---|",
    ]
    for entry in sorted(entries, key=lambda entry: BACKBONES.index(_backbone(entry))):
        values = [f"{entry.metrics[key]:.1f}" if key in entry.metrics else "" for key in metrics]
        length = entry.epochs or f"{(entry.iterations or 0) // 1000}k"
        files = f"[configuration]({entry.config}), [checkpoint]({entry.checkpoint})"
        cells = [_backbone(entry).replace("-IN21k", " (IN21k)"), str(length), *values, f"`{entry.name}`", files]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _backbone(entry: ZooEntry) -> str:
    return entry.name.rpartition("/")[2]


if __name__ == "__main__":
    main()
