"""Settings of a training, chosen from the data and the machine, each with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from mask2former.config import find_value
from mask2former.data import Inspection
from mask2former.engine.training_graphs import may_use_graphs
from mask2former.own_data.crops import Crops, choose_crops
from mask2former.own_data.machine import Machine, images_that_fit
from mask2former.visualization import Task

__all__ = ["Choice", "Plan", "choose_settings", "main_metric"]

_METRICS: dict[Task, str] = {"panoptic": "panoptic_seg/PQ", "instance": "segm/AP", "semantic": "sem_seg/mIoU"}
_LARGEST_BATCH = {True: 16, False: 4}  # on a GPU, and on a CPU, where more takes longer than it helps
_FEWEST_IMAGES = {True: 8_000, False: 16_000}  # seen in a fine-tuning, and in a training of a new head
_EPOCHS = {True: 25, False: 50}


@dataclass(frozen=True)
class Choice:
    """One key.

    Attributes:
        key: Of the configuration.
        value: Of the key.
        reason: For people.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """What settings are chosen from.

    Attributes:
        base: The configuration to start from.
        given: Keys that the user has set: they are left alone.
        parameters: Of the model.
        inspection: Of the training data.
        panoptic: Whether the data have segments rather than instances.
        machine: Where it will run.
        processes: Of the training.
        fine_tuned: Whether its weights are those of a whole model, whose head is kept as far as it fits, and not of a
            backbone alone.
        validation: Whether there is data to evaluate on.
        patience: Of early stopping, in evaluations; 0 never stops.
    """

    base: CfgNode
    given: Mapping[str, Any]
    parameters: int
    inspection: Inspection
    panoptic: bool
    machine: Machine
    processes: int = 1
    fine_tuned: bool = False
    validation: bool = True
    patience: int = 0

    @property
    def task(self) -> Task:
        """What can be learnt of the data."""
        if not self.panoptic:
            return "instance"
        return "panoptic" if any(c.isthing for c in self.inspection.classes) else "semantic"


def main_metric(task: Task) -> str:
    """The name of the metric that a task is judged by."""
    return _METRICS[task]


def choose_settings(plan: Plan) -> list[Choice]:
    """Choose what depends on data and memory; what the user has set is taken as it is, and not among the choices.

    Returns:
        The choices, in the order in which they depend on each other.

    Raises:
        ValueError: The data have nothing to tell apart, or the user's batch cannot be divided among processes and steps
            of accumulation.
    """
    settings = _Settings(plan)
    settings.choose_task()
    settings.choose_images()
    settings.choose_schedule()
    settings.choose_evaluation()
    return [choice for choice in settings.choices if choice.key not in plan.given]


class _Settings:
    """Collects choices, and knows the value that holds for a key."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.choices: list[Choice] = []

    def choose(self, key: str, value: Any, reason: str) -> Any:
        """Note a choice; returns what holds."""
        self.choices.append(Choice(key, value, reason))
        return self.value(key)

    def value(self, key: str) -> Any:
        """What the user has set, what was chosen, or what the base has."""
        if key in self.plan.given:
            return self.plan.given[key]
        return next((choice.value for choice in self.choices if choice.key == key), self.base(key))

    def base(self, key: str) -> Any:
        """What the base has."""
        return find_value(self.plan.base, key)

    def choose_task(self) -> None:
        plan, task = self.plan, self.plan.task
        if task == "semantic" and len(plan.inspection.classes) == 1:
            raise ValueError(
                f"the data have one class, {plan.inspection.classes[0].name!r}, and no instances, so every pixel would "
                "be of it. Make what it is to be told from a class too (in place of void, for example), or give it "
                "instances (a folder of PNGs of them beside)."
            )
        kinds = {"panoptic": "things and stuff", "instance": "instances", "semantic": "classes without instances"}
        self.choose("INPUT.DATASET_MAPPER_NAME", f"coco_{task}_lsj", f"the data have {kinds[task]}")
        for name in ("PANOPTIC", "INSTANCE", "SEMANTIC"):
            turned_on = task in (name.lower(), "panoptic")
            self.choose(f"MODEL.MASK_FORMER.TEST.{name}_ON", turned_on, "what the model gives, and is evaluated for")
        self.choose("MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(plan.inspection.classes), "classes of the data")
        self.choose("MODEL.MASK_FORMER.IGNORE_VOID", True, "what is not labelled teaches nothing")
        if weights := plan.base.MODEL.WEIGHTS:
            what = (
                "a trained model, whose head is new where classes differ" if plan.fine_tuned else "a trained backbone"
            )
            self.choose("MODEL.WEIGHTS", weights, what)

    def choose_images(self) -> None:
        plan = self.plan
        amp = self.choose(
            "SOLVER.AMP.ENABLED",
            plan.machine.gpu and self.base("SOLVER.AMP.ENABLED"),
            "half precision is faster on a GPU" if plan.machine.gpu else "half precision is slower on most CPUs",
        )
        targets = min(plan.inspection.most_segments, 100)

        def fits(side: int) -> float:
            return images_that_fit(plan.machine, plan.parameters, side, targets, amp=amp)

        crops = choose_crops(
            plan.inspection,
            fits,
            gpu=plan.machine.gpu,
            queries=self.value("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
            may_tile=plan.task != "semantic",
            side=plan.given.get("INPUT.IMAGE_SIZE"),
        )
        for key, value, reason in crops.settings():
            self.choose(key, value, reason)
        if not crops.tiles:
            self._undo_tiles()
        self._choose_queries(crops)
        self._choose_batch(fits(crops.side), crops.side)

    def _undo_tiles(self) -> None:
        """The base may be a model that sees pictures in tiles, and at their own size."""
        for key, value in (
            ("INPUT.SCALE_REFERENCE", "crop"),
            ("INPUT.TEST_SCALE", 0.0),
            ("MODEL.MASK_FORMER.TEST.TILE_SIZE", 0),
        ):
            if self.base(key) != value:
                self.choose(key, value, "pictures are seen whole")

    def _choose_queries(self, crops: Crops) -> None:
        now = self.base("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES")
        needed = crops.most_segments
        where = "a tile" if crops.tiles else "an image"
        if needed <= now:
            queries, reason = now, f"enough: at most {needed} segments in {where}; a trained model keeps its queries"
        else:
            queries = math.ceil(1.2 * needed / 50) * 50
            reason = f"up to {needed} segments in {where}, and a fifth more; a trained model keeps its {now}"
        queries = self.choose("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", queries, reason)
        most = self.plan.inspection.most_segments
        detections = max(100, queries, math.ceil(1.2 * most / 50) * 50 if crops.tiles else 0)
        self.choose("TEST.DETECTIONS_PER_IMAGE", detections, f"the fullest image has {most} segments")

    def _choose_batch(self, fit: float, side: int) -> None:
        plan = self.plan
        accumulated = self.value("SOLVER.GRADIENT_ACCUMULATION_STEPS")
        parts = plan.processes * accumulated
        most = min(fit, _LARGEST_BATCH[plan.machine.gpu], max(1, plan.inspection.images // plan.processes))
        batch = 2 ** int(math.log2(max(1.0, most))) * parts
        memory = f"{plan.machine.memory / 1e9:.0f} GB of {'the GPU' if plan.machine.gpu else 'memory'}"
        reason = f"about {fit:.1f} images of {side} pixels fit into {memory}"
        if plan.processes > 1:
            reason += f", in each of {plan.processes} processes"
        if accumulated > 1:
            reason += f"; {accumulated} times so many make a step"
        before, rate = self.base("SOLVER.IMS_PER_BATCH"), self.base("SOLVER.BASE_LR")
        batch = self.choose("SOLVER.IMS_PER_BATCH", batch, reason)
        if batch % parts:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch}, expected a multiple of {parts}: {plan.processes} process(es) times "
                f"SOLVER.GRADIENT_ACCUMULATION_STEPS = {accumulated}."
            )
        self.choose(
            "SOLVER.BASE_LR",
            float(f"{rate * batch / before:.3g}"),
            f"{rate:g} for {before} images a batch, scaled with the batch",
        )

    def choose_schedule(self) -> None:
        plan = self.plan
        batch, images = self.value("SOLVER.IMS_PER_BATCH"), plan.inspection.images
        epochs = _EPOCHS[plan.fine_tuned]
        seen = max(_FEWEST_IMAGES[plan.fine_tuned], epochs * images)
        steps = _round_up(seen / batch, 10)
        reason = f"{seen / max(images, 1):.0f} times through {images} images" + (
            "" if seen > _FEWEST_IMAGES[plan.fine_tuned] else f": {seen} images, for a small data set"
        )
        steps = self.choose("SOLVER.MAX_ITER", steps, reason)
        falls = sorted({int(0.9 * steps), int(0.95 * steps)}) if steps >= 10 else []
        self.choose("SOLVER.STEPS", falls, "the learning rate falls tenfold at each")
        self.choose("SOLVER.WARMUP_ITERS", min(100, steps // 20), "the learning rate rises so long")
        self.choose("SOLVER.CHECKPOINT_PERIOD", _round_up(steps / 8, 10), "--resume goes on from the last")
        workers = min(8, plan.machine.cpus) if plan.machine.gpu else min(1, plan.machine.cpus - 1)
        self.choose("DATALOADER.NUM_WORKERS", workers, f"{plan.machine.cpus} cores for each process")
        if plan.machine.gpu and may_use_graphs(self.value, plan.processes):
            self.choose("SOLVER.CUDA_GRAPHS", True, "the GPU gets its kernels at once, not one by one from Python")
        self.choose("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "images of nothing teach what nothing looks like")

    def choose_evaluation(self) -> None:
        if not self.plan.validation:
            self.choose("TEST.EVAL_PERIOD", 0, "there is no validation data")
            return
        steps, batch = self.value("SOLVER.MAX_ITER"), self.value("SOLVER.IMS_PER_BATCH")
        epoch = self.plan.inspection.images / batch
        period = min(steps, _round_up(max(steps / 20, epoch), 20))  # metrics are logged every 20 steps
        self.choose("TEST.EVAL_PERIOD", period, f"steps between evaluations, {steps / period:.0f} in all")
        self.choose("TEST.BEST_CHECKPOINT.ENABLED", True, "the best model is kept as model_best.pth")
        self.choose("TEST.BEST_CHECKPOINT.METRIC", main_metric(self.plan.task), "what best means")
        if self.plan.patience:
            self.choose("TEST.EARLY_STOPPING.PATIENCE", self.plan.patience, "evaluations without gain that end it")


def _round_up(value: float, multiple: int) -> int:
    return max(1, math.ceil(value / multiple) * multiple)
