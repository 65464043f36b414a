"""What happens between the steps of a training run."""

import json
import logging
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mask2former.durable_files import replace_file
from mask2former.engine.random_state import derive_seed, seed_all

__all__ = [
    "BestCheckpointer",
    "EarlyStopping",
    "MetricRecord",
    "PeriodicCheckpointer",
    "ProgressBar",
    "SeedEachStep",
    "TrainingStopped",
]

logger = logging.getLogger(__name__)


class SeedEachStep(HookBase):
    """Seeds all random generators from (run seed, process, iteration): a resumed run draws what it would have."""

    def before_step(self) -> None:
        seed_all(derive_seed(self.trainer.cfg.SEED, comm.get_rank(), self.trainer.iter))


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Saves every so many steps, and ``model_final.pth`` at the end.

    Unlike Detectron2's, it also writes that file where a run is resumed that was killed after its last step and before
    the file was there. All processes need it, since they save together where the model is sharded.
    """

    def before_train(self) -> None:
        super().before_train()
        trainer, final = self.trainer, os.path.join(self.checkpointer.save_dir, f"{self.file_prefix}_final.pth")
        if trainer.start_iter >= trainer.max_iter > 0 and not comm.all_gather(os.path.isfile(final))[0]:
            trainer.iter = trainer.start_iter - 1  # the last step, as the checkpoint has it
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=trainer.iter)
            trainer.iter = trainer.start_iter


class MetricRecord(HookBase):
    """Keeps what a metric was in each evaluation in ``<folder>/evaluations.json``, for a run that is resumed.

    The checkpoint of a step does not hold the metric: it is saved before the step is evaluated, which may fail.

    Args:
        folder: of the run.
        eval_period: steps between evaluations.
        metric: its name, as in ``TEST.BEST_CHECKPOINT``.
    """

    def __init__(self, folder: str, eval_period: int, metric: str) -> None:
        self.metric = metric
        self._file = Path(folder, "evaluations.json")
        self._period = eval_period

    def at(self, iteration: int) -> float | None:
        """The metric after a step, NaN if the evaluation did not compute it; None if there was none."""
        return self._read().get(str(iteration))

    def before_train(self) -> None:
        """Forget what a run that is begun anew, or resumed from an earlier step, will evaluate again."""
        if comm.is_main_process() and self._file.is_file():
            values = self._read()
            self._write({step: value for step, value in values.items() if int(step) < self.trainer.start_iter})

    def after_step(self) -> None:
        if comm.is_main_process() and evaluates_after_step(self.trainer, self._period):
            value, _ = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
            self._write({**self._read(), str(self.trainer.iter): value})

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        if self._file.is_file():
            values = json.loads(self._file.read_text("utf-8")).get(self.metric, {})
        return values

    def _write(self, values: dict[str, float]) -> None:
        with replace_file(self._file) as file:
            file.write(json.dumps({self.metric: values}, indent=1).encode())


def evaluates_after_step(trainer: Any, period: int) -> bool:
    """Whether there is an evaluation after the step that a trainer is in; the one after the last step comes later."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


class BestCheckpointer(hooks.BestCheckpointer):
    """Keeps the checkpoint with the best metric as ``model_best.pth``.

    Unlike Detectron2's, it remembers the best value when a run is resumed, and a run is resumed from the latest
    checkpoint, not from the best. All processes need it.

    Args:
        record: what earlier evaluations gave; a hook that comes after this one.
        args: of Detectron2's hook, as is all that follows.
    """

    def __init__(self, record: MetricRecord, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record = record

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
        value = self._record.at(self.trainer.iter)
        if value is not None and self._is_better(value):
            self.best_metric, self.best_iter = value, self.trainer.iter

    def _best_checking(self) -> None:
        if not comm.all_gather(comm.is_main_process() and self._is_best())[0]:  # the main process has the results
            return
        resume_from = self._checkpointer.get_checkpoint_file()
        self._checkpointer.save(self._file_prefix, iteration=self.best_iter)
        if resume_from:
            self._checkpointer.tag_last_checkpoint(os.path.basename(resume_from))

    def _is_best(self) -> bool:
        """Whether the metric is better than it ever was, which is remembered."""
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            known = sorted(name for name in latest if "/" in name)
            logger.warning(
                f"TEST.BEST_CHECKPOINT.METRIC {self._val_metric!r} was not computed; the evaluation gave {known}."
            )
            return False
        value, iteration = latest[self._val_metric]
        if not self._is_better(value):
            logger.info(
                f"{self._val_metric} is {value:.4f}; the best is {self.best_metric} of iteration {self.best_iter}."
            )
            return False
        logger.info(f"{self._val_metric} is {value:.4f}, the best so far.")
        self.best_metric, self.best_iter = value, iteration
        return True

    def _is_better(self, value: float) -> bool:
        return math.isfinite(value) and (self.best_metric is None or self._compare(value, self.best_metric))


class TrainingStopped(BaseException):
    """Ends the loop of steps ahead of time. Not an Exception, for Detectron2 logs those as failures."""


class EarlyStopping(HookBase):
    """Stops the run, in all processes at once, when a metric has not improved for ``patience`` evaluations in a row.

    Args:
        record: what earlier evaluations gave; a hook that comes before this one.
        eval_period: steps between evaluations.
        mode: "max" or "min" is better.
        patience: evaluations in a row without improvement after which the run ends.
    """

    def __init__(self, record: MetricRecord, eval_period: int, mode: str, patience: int) -> None:
        self._record = record
        self._period = eval_period
        self._sign = {"max": 1, "min": -1}[mode]
        self._patience = patience
        self._best = -math.inf
        self._stale = 0
        self._counted = -1  # the step of the last evaluation that is in the two above

    @property
    def has_stopped(self) -> bool:
        """Whether the run has ended, or is to end."""
        return self._stale >= self._patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "stale": self._stale, "counted": self._counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._stale, self._counted = (state_dict[name] for name in ("best", "stale", "counted"))
        if self._counted < self.trainer.iter:
            self._count()

    def after_step(self) -> None:
        if not evaluates_after_step(self.trainer, self._period):
            return
        if comm.is_main_process():  # which alone has the results
            self._count()
        self._stale = comm.all_gather(self._stale)[0]
        if self.has_stopped:
            raise TrainingStopped(
                f"{self._record.metric} has not improved for {self._stale} evaluations "
                f"(TEST.EARLY_STOPPING.PATIENCE): stopped after {self.trainer.iter + 1} steps."
            )

    def _count(self) -> None:
        """Take the evaluation of this step into account, if there was one."""
        value = self._record.at(self.trainer.iter)
        if value is None:
            return
        if math.isnan(value):
            logger.warning(
                f"TEST.BEST_CHECKPOINT.METRIC {self._record.metric!r} was not computed, which TEST.EARLY_STOPPING "
                "counts as no improvement."
            )
        if value * self._sign > self._best:  # false for NaN
            self._best, self._stale = value * self._sign, 0
        else:
            self._stale += 1
        self._counted = self.trainer.iter


class ProgressBar(HookBase):
    """A bar with the remaining time and the loss, if standard error is a terminal; log lines appear above it."""

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self._bar: tqdm | None = None

    def before_train(self) -> None:
        if not sys.stderr.isatty():
            return
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "mask2former")]
        self._cleanup.enter_context(logging_redirect_tqdm(loggers))
        self._bar = self._cleanup.enter_context(
            tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                desc="train",
                unit="it",
                dynamic_ncols=True,
            )
        )

    def after_step(self) -> None:
        if self._bar is not None:
            self._bar.update()
            loss, _ = self.trainer.storage.latest().get("total_loss", (math.nan, 0))  # none if all steps were skipped
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def after_train(self) -> None:
        self._cleanup.close()
