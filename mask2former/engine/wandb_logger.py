"""The course of a training at Weights & Biases, if asked for."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from mask2former.engine.hooks import TrainingStopped

__all__ = ["WandbLogger", "import_wandb"]

_PERIOD = 20  # steps, as of Detectron2's other writers
_ID_FILE = "wandb_run.txt"


class WandbLogger(HookBase):
    """Logs scalars, and the pictures that are in the event storage, to a run of Weights & Biases.

    Has to stand before the hook of Detectron2's writers, which clear the pictures. A training that is resumed goes on
    with its run. The environment variables of ``wandb`` count; with ``WANDB_MODE=offline`` nothing leaves the machine.

    Args:
        cfg: ``LOGGING.WANDB.PROJECT``; all of it is kept with the run, whose files and id are in ``OUTPUT_DIR``.

    Raises:
        ModuleNotFoundError: ``wandb`` is not installed.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._wandb = import_wandb()
        self._project = cfg.LOGGING.WANDB.PROJECT
        self._output = Path(cfg.OUTPUT_DIR)
        self._config = yaml.safe_load(cfg.dump())
        self._run: Any = None
        self._logged = -1

    def before_train(self) -> None:
        """Begin a run, or go on with that of the training that is resumed.

        Raises:
            RuntimeError: There is no access to Weights & Biases.
        """
        file = self._output / _ID_FILE
        known = self.trainer.start_iter > 0 and file.is_file()
        try:
            self._run = self._wandb.init(
                project=self._project,
                id=file.read_text().strip() if known else None,
                resume="allow",
                name=self._output.absolute().name,
                dir=str(self._output),
                config=self._config,
            )
        except self._wandb.Error as error:
            raise RuntimeError(
                f"LOGGING.WANDB.PROJECT is {self._project!r}, but Weights & Biases cannot be used ({error}). Log in by "
                "`wandb login`, set WANDB_MODE=offline, or leave the key empty."
            ) from error
        file.write_text(f"{self._run.id}\n")
        # Steps of wandb only go up, but a training may be resumed from before its last log.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % _PERIOD == 0 or done == self.trainer.max_iter:
            self._log()

    def after_train(self) -> None:
        """End the run, as one that failed if an error ends the training."""
        if self._run is not None:
            self._log()  # where it was stopped early
            failed = sys.exc_info()[0] not in (None, TrainingStopped)
            self._run.finish(exit_code=int(failed))
            self._run = None

    def _log(self) -> None:
        storage = self.trainer.storage
        values: dict[str, Any] = {
            name: value
            for name, (value, iteration) in storage.latest_with_smoothing_hint(_PERIOD).items()
            if iteration > self._logged
        }
        for name, image, iteration in storage._vis_data:  # as Detectron2's own writers do
            if iteration > self._logged:
                values[name] = self._wandb.Image(image.transpose(1, 2, 0))
        self._logged = storage.iter
        if values:
            self._run.log({"iteration": storage.iter, **values})


def import_wandb() -> ModuleType:
    """The package ``wandb``.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LOGGING.WANDB.PROJECT needs wandb: pip install 'mask2former[wandb]'") from error
    return wandb
