"""What one call of a model asks for, checked."""

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from mask2former.data.augmentation import ResizeShortestEdge
from mask2former.visualization import Task

if TYPE_CHECKING:
    from mask2former.inference.segmenter import Segmenter

__all__ = ["Options", "Request", "build_request", "tasks_of"]

_TASK_KEYS: dict[Task, str] = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}
_INSTANCE_THRESHOLD = 0.5
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What one call asks for, so that calls in other threads can ask for something else.

    Attributes:
        model: the model with these outputs.
        tasks: what it gives.
        options: what was asked for.
        resize: from a picture to the network's input.
    """

    model: Any
    tasks: tuple[Task, ...]
    options: "Options"
    resize: T.AugmentationList

    def warn(self) -> "Request":
        """Say in the log what has no effect; return itself."""
        if self.options.threshold is not None and self.tasks == ("semantic",):
            logger.warning("a confidence threshold has no effect on semantic segmentation")
        return self


@dataclass(frozen=True)
class Options:
    """What a call may choose; :meth:`Segmenter.predict` tells what each is."""

    task: Task | Sequence[Task] | None = None
    threshold: float | None = None
    size: int | None = None
    batch_size: int = 1
    tile: int | None = None
    tile_overlap: int | None = None

    @property
    def instance_threshold(self) -> float:
        """Least score of an instance."""
        return _INSTANCE_THRESHOLD if self.threshold is None else self.threshold

    def check(self, cfg: CfgNode, default_tasks: Sequence[Task]) -> tuple[Task, ...]:
        """The tasks that are asked for, of a model that need not have been built.

        Raises:
            ValueError: an option is out of range.
        """
        task: Any = default_tasks if self.task is None else self.task
        tasks = tuple(task) if isinstance(task, Iterable) and not isinstance(task, str) else (task,)
        if not tasks or not set(tasks) <= _TASK_KEYS.keys():
            given = "the configuration turns no task on" if self.task is None else f"task is {self.task!r}"
            raise ValueError(f"{given}; give --task or task=: panoptic, instance or semantic.")
        for name in ("size", "batch_size", "tile", "tile_overlap"):
            value = getattr(self, name)
            if not isinstance(value, Integral | None):
                raise ValueError(f"{name} is {value!r}, expected a whole number.")
        if self.threshold is not None and not (isinstance(self.threshold, Real) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold is {self.threshold!r}, expected 0 to 1.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1.")
        _check_size(self.size, cfg)
        _check_tiles(self.tile, self.tile_overlap)
        return tasks


def build_request(segmenter: "Segmenter", options: Options) -> Request:
    """Check the options, and find the model and the resizing that do what they say.

    Raises:
        ValueError: one is out of range, or the model cannot do it.
    """
    tasks = options.check(segmenter.cfg, segmenter.default_tasks)
    model = segmenter.model.with_outputs(
        tasks,
        object_mask_threshold=options.threshold,
        instance_threshold=options.instance_threshold,
        panoptic_scores=True,
        lazy_class_scores=True,
    )
    resize = segmenter.resize
    if options.size is not None:
        resize = T.AugmentationList([ResizeShortestEdge(int(options.size), sys.maxsize)])
    return Request(
        model=model if options.tile is None else model.with_tiles(options.tile, options.tile_overlap),
        tasks=tasks,
        options=options,
        resize=resize,
    )


def tasks_of(cfg: CfgNode) -> tuple[Task, ...]:
    """The tasks that a configuration turns on, panoptic first."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return tuple(task for task, key in _TASK_KEYS.items() if test[key])


def _check_size(size: int | None, cfg: CfgNode) -> None:
    if size is not None and size < 0:
        raise ValueError(f"size is {size}, expected pixels of the shorter edge, or 0 for pictures as they are.")
    if size is not None and cfg.TEST.AUG.ENABLED and not cfg.TEST.AUG.SCALES:
        raise ValueError(
            f"size is {size}, but test-time augmentation takes its sizes from TEST.AUG.MIN_SIZES; leave size out, "
            "or set TEST.AUG.SCALES, which are factors of it."
        )


def _check_tiles(tile: int | None, overlap: int | None) -> None:
    if tile is not None and tile < 0:
        raise ValueError(f"tile is {tile}, expected the side of a tile in pixels, or 0 for none.")
    if overlap is not None and not tile:
        raise ValueError(f"tile_overlap is {overlap}, but tile is {tile}; give the side of a tile too.")
