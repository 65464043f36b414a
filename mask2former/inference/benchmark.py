"""How long one model takes for a picture on this machine, and for which part of it."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from mask2former.engine import SegmentorWithTTA
from mask2former.export import ExportedMaskFormer, ExportedResults
from mask2former.inference.segmenter import Segmenter
from mask2former.modeling.optimize import prepare_for_inference

__all__ = ["Benchmark", "cpu_name", "sure_predictions", "time_models", "untrained"]

PARTS = ("preparation", "network", "post-processing", "whole picture")
_Network = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Benchmark:
    """What is timed.

    Attributes:
        options: keyword arguments of :meth:`Segmenter.predict`.
        picture: (H, W, 3) uint8 RGB.
        own_predictions: post-process what the network says; else what :func:`sure_predictions` says, because random
            weights, and noise, give no query that is sure of anything, and so nothing to do.
        rounds: timed runs of each model, of which medians are taken.
        warm_up: untimed runs before them.
    """

    options: dict[str, Any]
    picture: np.ndarray
    own_predictions: bool
    rounds: int = 10
    warm_up: int = 2


def time_models(models: dict[str, Segmenter], benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Time models by turns, one run each, so that whatever else the machine does falls on all of them.

    Returns:
        For each model the median seconds a picture of ``PARTS``: reading is not among them; "preparation" resizes,
        "network" goes from pixels on their device to logits, and "post-processing" is all that follows.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for round_number in range(benchmark.warm_up + benchmark.rounds):
        for name, model in models.items():
            seconds = _time_once(model, benchmark)
            if round_number >= benchmark.warm_up:
                runs[name].append(seconds)
    return {name: {part: statistics.median(run[part] for run in done) for part in PARTS} for name, done in runs.items()}


def _time_once(model: Segmenter, benchmark: Benchmark) -> dict[str, float]:
    batch_size = benchmark.options.get("batch_size", 1)
    pictures = benchmark.picture if batch_size == 1 else [benchmark.picture] * batch_size
    with _watched(model, own_predictions=benchmark.own_predictions) as spans:
        begin = time.perf_counter()
        model.predict(pictures, **benchmark.options)
        end = time.perf_counter()  # results are in main memory, so no GPU has anything left to do
    network = sum(after - before for before, after in spans)
    preparation = spans[0][0] - begin
    seconds = (preparation, network, end - begin - preparation - network, end - begin)
    return {part: value / batch_size for part, value in zip(PARTS, seconds, strict=True)}


def _now(device: torch.device) -> float:
    """The time when this device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _watched(segmenter: Segmenter, *, own_predictions: bool) -> Iterator[list[tuple[float, float]]]:
    """Note when the network begins and ends; several times in a picture where there are tiles or views."""
    spans: list[tuple[float, float]] = []

    def watch(network: _Network) -> _Network:
        def run(images: Tensor) -> dict[str, Tensor]:
            begin = _now(images.device)
            outputs = network(images)
            spans.append((begin, _now(images.device)))
            return outputs if own_predictions or "pred_logits" not in outputs else _made_sure(outputs)

        return run

    model = segmenter.model.model if isinstance(segmenter.model, SegmentorWithTTA) else segmenter.model
    if isinstance(model, ExportedMaskFormer | ExportedResults):
        owner, name = model if isinstance(model, ExportedResults) else model.sem_seg_head, "exported"
        watched: Any = getattr(owner, name).around(watch)
    else:
        owner, name, watched = model, "run_network", watch(model.run_network)
    before = {key: value for key, value in vars(owner).items() if key == name}
    setattr(owner, name, watched)
    try:
        yield spans
    finally:
        delattr(owner, name)
        vars(owner).update(before)


def _made_sure(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other predictions of the same shapes."""
    logits, masks = outputs["pred_logits"], outputs["pred_masks"]
    sure = sure_predictions(logits.shape[1], logits.shape[2] - 1, masks.shape[-2:], masks.device)
    made = {name: tensor.expand(len(logits), *tensor.shape[1:]) for name, tensor in sure.items()}
    return {**outputs, **made}


@lru_cache(maxsize=8)
def sure_predictions(
    num_queries: int, num_classes: int, size: tuple[int, ...], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Predictions as of a trained model: discs, of which every fourth is sure of its class.

    They are cached, so that at most the first run contains the making of them; do not write into them.

    Returns:
        ``pred_logits`` (1, Q, K + 1) and ``pred_masks`` (1, Q, *size).
    """
    height, width = size
    sure = max(num_queries // 4, 1)
    logits = torch.zeros(1, num_queries, num_classes + 1, device=device)
    logits[..., -1] = 8
    for index in range(sure):
        logits[0, index * num_queries // sure, [index * 5 % num_classes, -1]] = torch.tensor([10.0, 0.0], device=device)
    generator = torch.Generator().manual_seed(0)
    x, y, radius = torch.rand(3, num_queries, 1, 1, generator=generator).to(device)
    rows = torch.linspace(0, 1, height, device=device)[:, None]
    columns = torch.linspace(0, 1, width, device=device)
    distance = ((rows - y) ** 2 + (columns - x) ** 2).sqrt()
    return {"pred_logits": logits, "pred_masks": (20 * (0.1 + 0.2 * radius - distance))[None]}


def untrained(cfg: CfgNode) -> Segmenter:
    """A model with random weights."""
    return Segmenter(cfg, model=prepare_for_inference(cfg, build_model(cfg)))


def cpu_name() -> str:
    """The processor as it calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'} ({torch.backends.cpu.get_cpu_capability()})"
