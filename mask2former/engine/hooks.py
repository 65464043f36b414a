"""What happens between the steps of a training run."""

import logging
import math
import os
import sys
from contextlib import ExitStack
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mask2former.engine.random_state import derive_seed, seed_all

__all__ = ["BestCheckpointer", "ProgressBar", "SeedEachStep"]

logger = logging.getLogger(__name__)


class SeedEachStep(HookBase):
    """Seeds all random generators from (run seed, process, iteration): a resumed run draws what it would have."""

    def before_step(self) -> None:
        seed_all(derive_seed(self.trainer.cfg.SEED, comm.get_rank(), self.trainer.iter))


class BestCheckpointer(hooks.BestCheckpointer):
    """Keeps the checkpoint with the best metric as ``model_best.pth``.

    Unlike Detectron2's, it remembers the best value when a run is resumed, and a run is resumed from the latest
    checkpoint, not from the best.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            known = sorted(name for name in latest if "/" in name)
            logger.warning(
                f"TEST.BEST_CHECKPOINT.METRIC {self._val_metric!r} was not computed; the evaluation gave {known}."
            )
            return
        value, iteration = latest[self._val_metric]
        if not math.isfinite(value) or (self.best_metric is not None and not self._compare(value, self.best_metric)):
            logger.info(
                f"{self._val_metric} is {value:.4f}; the best is {self.best_metric} of iteration {self.best_iter}."
            )
            return
        logger.info(f"{self._val_metric} is {value:.4f}, the best so far.")
        self.best_metric, self.best_iter = value, iteration
        resume_from = self._checkpointer.get_checkpoint_file()
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        if resume_from:
            self._checkpointer.tag_last_checkpoint(os.path.basename(resume_from))


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
            self._bar.set_postfix(loss=f"{self.trainer.storage.history('total_loss').latest():.3f}", refresh=False)

    def after_train(self) -> None:
        self._cleanup.close()
