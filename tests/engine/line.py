"""A model of two layers and its training, step by step, in one process or several."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import toy

from mask2former.engine import load_config
from mask2former.engine.parallel import parallelize
from mask2former.engine.sharding import gather
from mask2former.engine.train_loop import StepTrainer


class Line(nn.Module):
    """Mean squared error of a line; a sample is {"x": ..., "y": ...}."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 1)])  # the second has nothing for one of two

    def forward(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        x = torch.stack([sample["x"] for sample in samples])
        y = torch.stack([sample["y"] for sample in samples])
        return {"loss": ((self.layers[1](self.layers[0](x).tanh()) - y) ** 2).mean()}


def samples(count: int, size: float = 1.0) -> list[dict[str, Any]]:
    """Points, of any count the same, and targets of about ``size``."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))[:count]
    return [{"x": row, "y": row.sum()[None] * size, "file_name": f"{i}.png"} for i, row in enumerate(x)]


def train_line(
    steps: int,
    accumulation: int = 1,
    broken: tuple[int, ...] = (),
    value: float = float("nan"),
    dtype: torch.dtype | None = None,
    size: float = 1.0,
    **changes: object,
) -> dict[str, Any]:
    """Take steps on this process's share of the samples; at the broken ones the last process has to predict ``value``.

    Returns:
        "gradients" of each step, whole; "weights" after it; "skipped" and "scale" at the end, and what was "told"; or
        the "error".
    """
    cfg = load_config(opts=toy.options(**changes))
    rank, world = comm.get_rank(), comm.get_world_size()
    share = 4 // (world * accumulation)
    batches, everything = [], samples(4 * steps, size)
    for step in range(steps):
        mine = everything[4 * step : 4 * step + 4][rank::world]
        if step in broken and rank == world - 1:
            mine = [{**mine[0], "y": torch.tensor([value]), "file_name": f"broken{step}.png"}, *mine[1:]]
        batches += [mine[i : i + share] for i in range(0, len(mine), share)]
    model = Line()
    parallel = parallelize(cfg, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(
        parallel, batches, optimizer, accumulation_steps=accumulation, autocast_dtype=dtype, max_skipped_steps=1
    )
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("mask2former").addHandler(handler)
    result: dict[str, Any] = {"gradients": [], "weights": [], "told": told}
    try:
        with EventStorage():
            for trainer.iter in range(steps):
                trainer.run_step()
                for kind, tensor in (("gradients", lambda p: p.grad), ("weights", lambda p: p.detach())):
                    whole = gather({name: tensor(p) for name, p in model.named_parameters()}, keep=True)
                    result[kind].append({name: value.clone() for name, value in whole.items()})
    except FloatingPointError as e:
        result["error"] = str(e)
    finally:
        logging.getLogger("mask2former").removeHandler(handler)
    result |= {"skipped": trainer.skipped_steps.state_dict(), "scale": trainer.grad_scaler.get_scale()}
    return result
