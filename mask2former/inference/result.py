"""What a model found in one picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from mask2former.evaluation.run_lengths import encode_mask
from mask2former.home import expand_home
from mask2former.inference.exchange import to_coco, to_supervision
from mask2former.inference.result_files import ResultFiles, id_map, make_folder, save_results, write_image
from mask2former.visualization import Task, class_name, draw_predictions

__all__ = ["InstanceResult", "PanopticResult", "PanopticSegment", "Result", "SemanticResult"]


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a panoptic result.

    Attributes:
        id: of its pixels in the id map, from 1.
        category_id: contiguous class id, as in training.
        name: of the class; the id as text where it has no name.
        isthing: whether it is an instance, or all of a class of stuff.
        score: class probability, 0 to 1; of the surest query where several were merged.
        area: in pixels.
    """

    id: int
    category_id: int
    name: str
    isthing: bool
    score: float
    area: int


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """Every pixel's segment.

    Attributes:
        ids: (H, W) int32, the ``id`` of a segment, or 0 where there is none.
        segments: without overlaps, in the order of their ids.
    """

    ids: np.ndarray
    segments: list[PanopticSegment]

    def mask(self, segment: PanopticSegment) -> np.ndarray:
        """The pixels of a segment, (H, W) bool."""
        return self.ids == segment.id


@dataclass(frozen=True, eq=False)
class InstanceResult:
    """N instances, the surest first; they may overlap.

    Attributes:
        masks: (N, H, W) bool.
        boxes: (N, 4) float32, the masks' tight boxes as (x0, y0, x1, y1) in pixels.
        scores: (N,) float32, 0 to 1.
        classes: (N,) int64, contiguous class ids.
        names: of the classes.
    """

    masks: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.scores)

    def rle(self) -> list[dict[str, Any]]:
        """The masks as COCO's compressed run lengths, which ``pycocotools.mask.decode`` reads and JSON can hold."""
        return [encode_mask(mask) for mask in self.masks]


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """Every pixel's class.

    Attributes:
        labels: (H, W) int32, contiguous class ids.
        names: of the K classes.
    """

    labels: np.ndarray
    names: list[str]
    _scores: Any = field(repr=False)

    @cached_property
    def scores(self) -> np.ndarray:
        """(K, H, W) float32, of which ``labels`` is the highest; not normalised over the classes.

        They are computed when they are asked for, and then kept.
        """
        scores: np.ndarray = self._scores.numpy()
        return scores


@dataclass(frozen=True, eq=False)
class Result:
    """What a model found in one picture, at the picture's size.

    Attributes:
        image: the picture, (H, W, 3) uint8 RGB.
        tasks: what was predicted, the first being what :meth:`draw`, :meth:`save` and the conversions take.
        predictions: the model's own result, Detectron2's ``panoptic_seg``, ``instances`` and ``sem_seg``, on the CPU;
            the last may be :class:`~mask2former.modeling.postprocessing.ClassScores`.
        metadata: Detectron2's metadata of the data set: names and colours of classes.
        path: the picture's file, or None.
    """

    image: np.ndarray = field(repr=False)
    tasks: tuple[Task, ...]
    predictions: Mapping[str, Any] = field(repr=False)
    metadata: Any = field(repr=False, default=None)
    path: Path | None = None

    def __repr__(self) -> str:
        """The picture and what was found in it, in one line."""
        height, width = self.size
        found = [f"{height} x {width}"]
        if "panoptic" in self.tasks:
            found.append(f"{len(self.panoptic.segments)} panoptic segments")
        if "instance" in self.tasks:
            found.append(f"{len(self.instances)} instances")
        if "semantic" in self.tasks:
            found.append("semantic")
        return f"Result({'' if self.path is None else f'{self.path}: '}{', '.join(found)})"

    def _repr_png_(self) -> bytes:
        """The drawing, as Jupyter shows it."""
        return cv2.imencode(".png", np.ascontiguousarray(self.draw()[:, :, ::-1]))[1].tobytes()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def panoptic(self) -> PanopticResult:
        """Segments that do not overlap, of things and stuff."""
        self._choose("panoptic")
        ids = id_map(self.predictions, "panoptic")
        infos = self.predictions["panoptic_seg"][1]
        areas = np.bincount(ids.ravel(), minlength=len(infos) + 1)
        segments = [
            PanopticSegment(
                id=info["id"],
                category_id=info["category_id"],
                name=class_name(self.metadata, info["category_id"], bool(info["isthing"])),
                isthing=bool(info["isthing"]),
                score=float(info["score"]),
                area=int(areas[info["id"]]),
            )
            for info in infos
        ]
        return PanopticResult(ids, segments)

    @cached_property
    def instances(self) -> InstanceResult:
        """Instances at or above the threshold, the surest first."""
        self._choose("instance")
        found = self.predictions["instances"]
        classes = found.pred_classes.numpy()
        return InstanceResult(
            masks=found.pred_masks.numpy(),
            boxes=found.pred_boxes.tensor.numpy(),
            scores=found.scores.numpy(),
            classes=classes,
            names=[class_name(self.metadata, class_id, isthing=True) for class_id in classes.tolist()],
        )

    @cached_property
    def semantic(self) -> SemanticResult:
        """The class of each pixel."""
        self._choose("semantic")
        scores = self.predictions["sem_seg"]
        names = [class_name(self.metadata, class_id, isthing=False) for class_id in range(len(scores))]
        return SemanticResult(scores.argmax(0).numpy().astype(np.int32), names, scores)

    def to_coco(self, image_id: int | str = 0, *, task: Task | None = None) -> list[dict[str, Any]]:
        """The segments as COCO's annotations, which JSON can hold and ``pycocotools``' ``COCO.loadRes`` reads.

        Args:
            image_id: written into each.
            task: which result; None takes the first of ``tasks``.

        Returns:
            For each segment ``id`` (from 1), ``image_id``, ``category_id`` (the data set's own where the metadata know
            it, else the contiguous one), ``category_name``, ``isthing``, ``iscrowd`` (0), ``score`` (0..1, or None of a
            semantic class), ``area`` in pixels, ``bbox`` (x, y, width, height) in pixels and ``segmentation``, COCO's
            compressed run lengths.
        """
        return to_coco(self.predictions, self._choose(task), self.metadata, image_id)

    def to_supervision(self, *, task: Task | None = None) -> Any:
        """The segments as ``supervision.Detections`` with masks, class ids, and names in ``data["class_name"]``.

        Args:
            task: which result; None takes the first of ``tasks``.

        Raises:
            ModuleNotFoundError: without the package ``supervision``.
        """
        return to_supervision(self.predictions, self._choose(task), self.metadata)

    def draw(self, *, task: Task | None = None) -> np.ndarray:
        """Draw the segments on the picture: (H, W, 3) uint8 RGB.

        Args:
            task: which result; None takes the first of ``tasks``.
        """
        return draw_predictions(self.image, self.predictions, self.metadata, threshold=0.0, task=self._choose(task))

    def save(self, output: str | Path, *, task: Task | None = None) -> ResultFiles:
        """Write the drawing, and beside it the segments as JSON and, but for instances, a PNG of ids.

        Args:
            output: the drawing's file, or a folder, in which it gets the picture's name (``picture.png`` where that has
                no file).
            task: which result; None takes the first of ``tasks``.

        Returns:
            The files.

        Raises:
            ValueError: the drawing would overwrite the picture.
        """
        files = ResultFiles.at(expand_home(output), self.path or Path("picture.png"))
        if self.path is not None and self.path.resolve() in {path.resolve() for path in files.paths}:
            raise ValueError(f"{self.path} would be overwritten by its own result; choose another place.")
        self.write(files, task=task)
        return files

    def write(self, files: ResultFiles, *, task: Task | None = None) -> int:
        """Write the drawing, the JSON and the ids to files that were chosen before; returns the number of segments."""
        task = self._choose(task)
        make_folder(files.drawing.parent)
        write_image(files.drawing, self.draw(task=task)[:, :, ::-1])
        name = (self.path or files.drawing).name
        return save_results(self.predictions, task, self.metadata, file_name=name, files=files)

    def _choose(self, task: Task | None) -> Task:
        task = task or self.tasks[0]
        if task not in get_args(Task):
            raise ValueError(f"task is {task!r}, expected one of {', '.join(get_args(Task))}.")
        if task not in self.tasks:
            raise ValueError(
                f"there is no {task} result: predict(...) was asked for {' and '.join(self.tasks)}; "
                f'ask for it with task="{task}", or for several with task=("panoptic", "{task}").'
            )
        return task
