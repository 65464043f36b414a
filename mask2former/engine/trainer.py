"""Detectron2's default trainer, with Mask2Former's data, optimizer and evaluators, on GPUs and CPUs."""

import logging
import os
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from mask2former.data import build_dataset_mapper
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from mask2former.engine.config_files import with_opts
from mask2former.engine.data_loader import FILE_ERRORS, TrainLoader, build_test_loader, build_train_loader
from mask2former.engine.hooks import (
    BestCheckpointer,
    EarlyStopping,
    MetricRecord,
    PeriodicCheckpointer,
    ProgressBar,
    SeedEachStep,
    TrainingStopped,
)
from mask2former.engine.mixed_precision import amp_dtype
from mask2former.engine.optimizer import build_lr_scheduler, build_optimizer
from mask2former.engine.parallel import parallelize
from mask2former.engine.prediction_images import PredictionImages
from mask2former.engine.random_state import derive_seed, seed_all
from mask2former.engine.sharding import unsharded
from mask2former.engine.test_time_augmentation import SegmentorWithTTA
from mask2former.engine.train_loop import StepTrainer
from mask2former.engine.training_graphs import use_graphs
from mask2former.engine.wandb_logger import WandbLogger
from mask2former.evaluation import build_evaluator
from mask2former.modeling.config_checks import COUNT, NOT_NEGATIVE, check_ranges
from mask2former.modeling.optimize import prepare_for_training

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

_RANGES = {
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": COUNT,
    "DATALOADER.NUM_WORKERS": NOT_NEGATIVE,
    "TEST.VIS_IMAGES": NOT_NEGATIVE,
}


class Trainer(DefaultTrainer):
    """Trains and evaluates what a configuration describes.

    A run is reproducible from its ``SEED`` (drawn and logged where the configuration has none), and one that is stopped
    and resumed continues exactly: the same samples, augmentations, random points and losses as without the stop, for
    any number of loader workers. Bit for bit on a CPU; on a GPU as far as its kernels are deterministic.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super(DefaultTrainer, self).__init__()  # not DefaultTrainer's: its parallel model and AMP need a GPU
        check_ranges(cfg, _RANGES)
        cfg = _with_seed(self.auto_scale_workers(cfg, comm.get_world_size()))
        seed_all(derive_seed(cfg.SEED))  # the first weights
        model = prepare_for_training(self.build_model(cfg))
        use_graphs(cfg, model)
        parallel_model = parallelize(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = StepTrainer(
            parallel_model,
            self.build_train_loader(cfg),
            optimizer,
            accumulation_steps=cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS,
            autocast_dtype=amp_dtype(cfg),
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Mask2FormerCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the latest checkpoint in ``OUTPUT_DIR``, if asked to and it has one."""
        self.checkpointer.remove_leftovers()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.start_iter == 0 and resume and self.checkpointer.has_checkpoint():
            logger.warning("The checkpoint holds weights alone, so the training begins with them at step 0.")

    def train(self) -> dict[str, Any] | None:
        """Train from ``start_iter`` to ``SOLVER.MAX_ITER``, or until early stopping ends it.

        Returns:
            The last evaluation's results, on the main process.
        """
        self._last_eval_results: dict[str, Any] | None = None
        if any(isinstance(hook, EarlyStopping) and hook.has_stopped for hook in self._hooks):
            logger.info("The run that is resumed was stopped early, so nothing is left to do.")
            return None
        self.data_loader.first_batch = self.start_iter * self.cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS
        failures = logging.getLogger("detectron2.engine.train_loop")
        failures.addFilter(_without_stack)
        try:
            super().train()
        except TrainingStopped as stop:
            logger.info(str(stop))
            self.checkpointer.save("model_final", iteration=self.iter)
        finally:
            failures.removeFilter(_without_stack)
        return self._last_eval_results

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, between the seeding of each step and what needs the evaluation's results."""
        built = [hook for hook in super().build_hooks() if not isinstance(hook, hooks.PeriodicCheckpointer)]
        writer = [built.pop()] if comm.is_main_process() else []  # at the end, for it writes what the others computed
        # Before the evaluation, as Detectron2 has it: if that fails, the steps are not lost.
        built.insert(-1, PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        test = self.cfg.TEST
        best, period, patience = test.BEST_CHECKPOINT, test.EVAL_PERIOD, test.EARLY_STOPPING.PATIENCE
        if patience > 0 and period <= 0:
            raise ValueError(
                f"TEST.EARLY_STOPPING.PATIENCE is {patience}, but TEST.EVAL_PERIOD is {period}, so no evaluation would "
                "ever stop the training; say after how many steps to evaluate, or set PATIENCE 0."
            )
        record = MetricRecord(self.cfg.OUTPUT_DIR, period, best.METRIC)
        if best.ENABLED:
            built.append(BestCheckpointer(record, period, self.checkpointer, best.METRIC, best.MODE))
        if best.ENABLED or patience > 0:
            built.append(record)  # after the best checkpoint is there
        if self.cfg.VIS_PERIOD > 0 and self.cfg.DATASETS.TEST:
            built.append(PredictionImages(self.cfg, self.model))
        if comm.is_main_process() and self.cfg.LOGGING.WANDB.PROJECT:
            built.append(WandbLogger(self.cfg))
        built += [*writer, ProgressBar()] if comm.is_main_process() else []
        if patience > 0:  # last: what it interrupts the others have done
            built.append(EarlyStopping(record, period, best.MODE, patience))
        return [SeedEachStep(), *built]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.cfg.SEED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.start_iter = self.iter + 1
        seed = state_dict.get("seed", self.cfg.SEED)
        if seed != self.cfg.SEED:
            logger.info(f"The run goes on with the seed it began with, {seed}.")
            self.cfg = with_opts(self.cfg, ["SEED", seed])
            self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, build_dataset_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        return build_test_loader(cfg, dataset_name, build_dataset_mapper(cfg, is_train=False))

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        model = unsharded(model, lambda: cls.build_model(cfg))  # for processes with different numbers of images
        was_training = model.training
        try:
            results: dict[str, Any] = super().test(cfg, model, evaluators)
        finally:
            model.train(was_training)  # Detectron2 leaves a model whose evaluation fails in eval mode
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: N802  as in the official release
        """Evaluate with the test-time augmentation of ``TEST.AUG``; takes as long as all its views.

        Returns:
            As ``test``, with "_TTA" after each of the outer names. Predictions are in ``OUTPUT_DIR/inference_TTA``.
        """
        logger.info("Evaluating with test-time augmentation.")
        several = len(cfg.DATASETS.TEST) > 1
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(folder, name if several else "")) for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, SegmentorWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)


def _without_stack(record: logging.LogRecord) -> bool:
    """Leave out of what Detectron2 logs when a training fails what says nothing of a file that is gone or damaged."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FILE_ERRORS):
        record.msg, record.args, record.exc_info = "%s --resume goes on from the last checkpoint.", (error,), None
    return True


def _with_seed(cfg: CfgNode) -> CfgNode:
    if cfg.SEED >= 0:
        return cfg
    seed = comm.shared_random_seed()
    logger.info(f"SEED was not set: using {seed}.")
    return with_opts(cfg, ["SEED", seed])
