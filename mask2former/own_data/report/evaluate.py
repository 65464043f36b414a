"""The best model of a training, evaluated once more, so that its predictions are there to be looked at."""

import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from mask2former.durable_files import write_file
from mask2former.engine import Trainer
from mask2former.engine.checkpointer import Mask2FormerCheckpointer

__all__ = ["RESULTS_FILE", "best_checkpoint", "evaluate_best", "read_results"]

RESULTS_FILE = "results.json"


def best_checkpoint(output: Path) -> Path:
    """The best checkpoint of a training, or the last where none was chosen.

    Raises:
        FileNotFoundError: There is none.
    """
    for name in ("model_best.pth", "model_final.pth"):
        if (output / name).is_file():
            return output / name
    raise FileNotFoundError(f"{output} has neither model_best.pth nor model_final.pth: is it the folder of a training?")


def evaluate_best(output: Path, cfg: CfgNode) -> dict[str, Any]:
    """Evaluate it, and keep the results in ``results.json``; the predictions are in ``inference``.

    Returns:
        What :func:`read_results` gives.
    """
    checkpoint = best_checkpoint(output)
    model = Trainer.build_model(cfg)
    Mask2FormerCheckpointer(model).load(str(checkpoint))
    results = Trainer.test(cfg, model)
    iteration = torch.load(checkpoint, map_location="cpu", weights_only=True).get("iteration", -1)
    step = min(iteration + 1, cfg.SOLVER.MAX_ITER)  # after the last one, Detectron2 writes how many there were
    content = {"checkpoint": checkpoint.name, "step": step, "results": results}
    write_file(output / RESULTS_FILE, json.dumps(content, indent=1).encode())
    return content


def read_results(output: Path) -> dict[str, Any] | None:
    """What the last evaluation of the best model gave: "checkpoint", "step" and "results" by task; None if none."""
    path = output / RESULTS_FILE
    return json.loads(path.read_text()) if path.is_file() else None
