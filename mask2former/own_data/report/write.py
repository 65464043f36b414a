"""Gathering what a training has left in its folder, and writing the page."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data import Inspection
from mask2former.durable_files import write_file
from mask2former.engine import load_config
from mask2former.inference.request import tasks_of
from mask2former.own_data.prepare import read_inspection
from mask2former.own_data.report.charts import line_chart
from mask2former.own_data.report.curves import Series, read_curves
from mask2former.own_data.report.evaluate import evaluate_best, read_results
from mask2former.own_data.report.page import page, section, tiles
from mask2former.own_data.report.tables import percent, table
from mask2former.own_data.report.validation import validation_sections
from mask2former.own_data.settings import main_metric
from mask2former.visualization import Task

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"


def write_report(output: Path, *, evaluate: bool = True) -> Path:
    """Write ``report.html`` into the output folder of a training.

    Args:
        output: The folder.
        evaluate: Evaluate the best model first; otherwise what it has predicted before is shown.

    Returns:
        The page.

    Raises:
        FileNotFoundError: It is not the folder of a training, or there are no predictions to show.
    """
    if not (output / "config.yaml").is_file():
        raise FileNotFoundError(f"{output} has no config.yaml: is it the output folder of a training?")
    cfg = load_config(str(output / "config.yaml"), ["OUTPUT_DIR", str(output)])
    if cfg.DATASETS.TEST and (evaluate or read_results(output) is None):
        evaluate_best(output, cfg)
    known = read_inspection(output)
    task: Task = known["task"] if known else next(iter(tasks_of(cfg)), "semantic")
    results = read_results(output) if cfg.DATASETS.TEST else None
    curves = read_curves(output / "metrics.json", cfg.SOLVER.MAX_ITER)
    sections = [tiles(_facts(cfg, task, known, results, curves)), section("Course", _charts(curves, task))]
    if results is not None:
        name = cfg.DATASETS.TEST[0]
        records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
        sections += validation_sections(output / "inference", records, metadata, task, results["results"])
    sections += _data_sections(known) if known else []
    path = output / REPORT_FILE
    write_file(path, page(f"Training in {output.absolute().name}", sections).encode())
    return path


def _facts(
    cfg: CfgNode,
    task: Task,
    known: dict[str, Any] | None,
    results: dict[str, Any] | None,
    curves: dict[str, Series],
) -> list[tuple[str, str]]:
    facts = [("task", f"{task} segmentation")]
    if results is not None:
        group, name = main_metric(task).split("/")
        facts.append((f"{name} of {results['checkpoint']}", percent(results["results"][group][name] / 100)))
        facts.append(("trained for", f"{results['step']} of {cfg.SOLVER.MAX_ITER} steps"))
    if known:
        parts = {"own_train": "to train", "own_val": "to validate"}
        images = [f"{data['images']} {parts[name]}" for name, data in known["data"].items()]
        facts.append(("images", ", ".join(images)))
    if curves.get("time"):
        facts.append(("a step takes", f"{curves['time'][-1][1]:.2g} s"))
    facts.append(("started from", Path(cfg.MODEL.WEIGHTS).name or "nothing"))
    return facts


def _charts(curves: dict[str, Series], task: Task) -> str:
    losses = {
        name.removeprefix("loss_"): curves[name] for name in ("loss_ce", "loss_mask", "loss_dice") if name in curves
    }
    metrics = {
        title: curves[name]
        for title, name in (("PQ", "panoptic_seg/PQ"), ("mask AP", "segm/AP"), ("mIoU", "sem_seg/mIoU"))
        if name in curves
    }
    charts = [
        line_chart("Metrics of the validation images, %", metrics, zero=True),
        line_chart("Loss, all layers together", {"total": curves.get("total_loss", [])}, smooth=True, zero=True),
        line_chart("Losses of the last layer", losses, smooth=True, zero=True),
        line_chart("Learning rate", {"rate": curves.get("lr", [])}, zero=True),
    ]
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _data_sections(known: dict[str, Any]) -> list[str]:
    titles = {"own_train": "Training data", "own_val": "Validation data"}
    sections = []
    for name, content in known["data"].items():
        inspection = Inspection.from_json(content)
        classes = table(("class", "kind", "images", "segments", "pixels"), inspection.class_rows())
        sections.append(section(titles[name], table(("", ""), inspection.rows()), classes))
    if known["left_out"]:
        faults = table(("file, place, what is wrong",), [(fault,) for fault in known["left_out"]])
        sections.append(section("Left out", faults))
    rows = [(choice["key"], str(choice["value"]), choice["reason"]) for choice in known["settings"]]
    sections.append(section("Settings", table(("key", "value", "why"), rows, css="settings")))
    return sections
