"""A trained model, from pictures to results."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.data import transforms as T
from PIL import Image
from torch import nn

from mask2former.data.augmentation import build_test_augmentations
from mask2former.data.class_metadata import metadata_of_config
from mask2former.engine import SegmentorWithTTA
from mask2former.engine.config_files import with_opts
from mask2former.inference.pictures import Picture, is_single, iterate_sources, open_picture
from mask2former.inference.request import Options, Request, build_request, tasks_of
from mask2former.inference.result import Result
from mask2former.inference.video import is_video, open_video, prefetch, read_frames
from mask2former.inference.weights import build_whole_model
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import prepare_for_inference
from mask2former.processors import is_nvidia
from mask2former.visualization import Task

__all__ = ["Segmenter"]

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")


class Segmenter:
    """A trained model and the preparation that its pictures need, as in evaluation.

    Several threads may use one at the same time, with different tasks and thresholds: nothing in it changes.

    Attributes:
        cfg: the configuration, frozen.
        model: in eval mode; with ``TEST.AUG.ENABLED`` inside test-time augmentation.
        metadata: Detectron2's metadata of the data set: names and colours of classes.
        default_tasks: what :meth:`predict` gives where it is not told: the first of panoptic, instance and semantic
            that the configuration turns on, or nothing.
        resize: from a picture to the network's input, where :meth:`predict` is not told a size.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        model: Any = None,
        metadata: Metadata | None = None,
        least_side: int = 1,
        most_side: int = sys.maxsize,
    ) -> None:
        """
        Args:
            cfg: of the model; ``MODEL.WEIGHTS`` names a checkpoint of the whole model. Pictures are resized as for
                testing (``INPUT.TEST_SCALE`` or ``MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``) and given to the model in the
                channel order ``INPUT.FORMAT``. ``TEST.AUG.ENABLED`` turns test-time augmentation on.
            model: is taken as it is, in the place of the one that ``cfg`` describes.
            metadata: of the data set; None takes that of the first in ``cfg`` whose classes are known.
            least_side: least height and width of a picture that the model takes, in pixels as the network sees them.
            most_side: likewise the largest; both for pictures that are not cut into tiles.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are not those of a whole model, ``INPUT.FORMAT`` is unknown, or ``TEST.AUG`` asks
                for what cannot be done.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR", "L"):
            raise ValueError(f'INPUT.FORMAT is "{cfg.INPUT.FORMAT}", expected "RGB", "BGR" or "L"')
        self.cfg = with_opts(cfg, ["MODEL.MASK_FORMER.TEST.BATCH_BY_SIZE", True])
        self.model: Any = _build(self.cfg) if model is None else model
        self.metadata = metadata_of_config(cfg) if metadata is None else metadata
        self.default_tasks = tasks_of(cfg)[:1]
        self._sides = least_side, most_side
        self.resize = T.AugmentationList(build_test_augmentations(cfg))

    @property
    def offered_tasks(self) -> tuple[Task, ...]:
        """The tasks that the configuration turns on, panoptic first."""
        return tasks_of(self.cfg)

    def predict(
        self,
        images: Any,
        *,
        task: Task | Sequence[Task] | None = None,
        threshold: float | None = None,
        size: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> Any:
        """Segment pictures.

        Args:
            images: a picture: a path, a PIL image, an array (H, W, 3) uint8 **RGB** (OpenCV reads BGR!) or (H, W) gray,
                or a tensor (3, H, W) uint8 RGB. Or several: a sequence of such, a folder, or a pattern such as
                "scans/**/*.tif". Files and PIL images are turned upright as their EXIF data say.
            task: "panoptic", "instance" or "semantic", or several of them; None takes ``default_tasks``.
            threshold: least score, 0 to 1, of instances (None: 0.5) and of panoptic segments (None:
                ``MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD``). Semantic results have none.
            size: pixels of the shorter edge that the network sees, at any length of the other, or 0 for pictures as
                they are; None resizes as the configuration says. Results always have the picture's own size.
            batch_size: pictures that go through the network together. They may be of different sizes: each gets what it
                gets alone.
            tile: pictures larger than this, in pixels as the network sees them, are cut into overlapping square tiles
                of this side, which bounds the memory that the network needs, and segments are joined across the seams.
                A multiple of 32; 0 never cuts; None does as ``MODEL.MASK_FORMER.TEST.TILE_SIZE`` says.
            tile_overlap: least overlap of tiles, a multiple of 32 of at most half a tile, and larger than most
                objects; None takes about a quarter of ``tile``.

        Returns:
            A :class:`Result` for a picture, a list of them for several.

        Raises:
            FileNotFoundError: there is no such file, or no picture in a folder.
            ValueError: a picture cannot be read, or an argument is out of range.
            TypeError: something is not a picture.
        """
        request = build_request(self, Options(task, threshold, size, batch_size, tile, tile_overlap)).warn()
        if isinstance(images, str | Path) and is_video(images):
            raise ValueError(f"{images}: predict takes pictures in files; a video or an address is for stream().")
        if is_single(images):
            result: Result = self._segment(request, [self._prepare(request, images)])[0]
            self._warn_of_limit(result)
            return result
        return list(self._stream(iterate_sources(images), request, batch_size=batch_size))

    def stream(
        self,
        source: Any,
        *,
        task: Task | Sequence[Task] | None = None,
        threshold: float | None = None,
        size: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        tile_overlap: int | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Iterator[Result]:
        """Segment one picture after the other; the next are read and resized while the model works on this one.

        Args:
            source: a video (a file, an address or an open ``cv2.VideoCapture``), a camera (its number), or what
                :meth:`predict` takes, of which collections may be endless generators.
            task: as in :meth:`predict`, like the next five.
            threshold: likewise.
            size: likewise.
            batch_size: likewise.
            tile: likewise.
            tile_overlap: likewise.
            on_error: called with the error of a picture that cannot be read, which is then left out; None raises it.

        Yields:
            One result a picture or frame, in order. Frames come as :attr:`Result.image`.
        """
        # At once, not when the first result is asked for.
        request = build_request(self, Options(task, threshold, size, batch_size, tile, tile_overlap)).warn()
        pictures = _frames(source) if is_video(source) else iterate_sources(source)
        return self._stream(pictures, request, batch_size=batch_size, on_error=on_error)

    def check_options(self, **options: Any) -> tuple[Task, ...]:
        """The tasks that :meth:`predict` would do with these options, which are its keyword arguments.

        Raises:
            ValueError: it would refuse them.
        """
        return build_request(self, Options(**options)).tasks

    def _stream(
        self,
        pictures: Iterable[Any],
        request: Request,
        *,
        batch_size: int,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Iterator[Result]:
        def prepared() -> Iterator[tuple[Picture, dict[str, Any]] | Exception]:
            for picture in pictures:
                try:
                    yield self._prepare(request, picture)
                except (OSError, ValueError) as error:
                    if on_error is None:
                        raise
                    yield error

        def readable() -> Iterator[tuple[Picture, dict[str, Any]]]:
            for item in prefetch(prepared(), depth=max(4, 2 * batch_size)):
                if not isinstance(item, Exception):
                    yield item
                elif on_error is not None:  # in the caller's thread
                    on_error(item)

        # Every frame of a video may be full: the first one is told of, and the others are counted.
        number = full = 0
        for batch in _batches(readable(), batch_size):
            for result in self._segment(request, batch):
                number += 1
                full += self._is_full(result)
                if full == 1:
                    self._warn_of_limit(result)
                yield result
        if full > 1:
            logger.warning("%d of %d pictures have that many instances, so some may be missing.", full, number)

    def _prepare(self, request: Request, source: Any) -> tuple[Picture, dict[str, Any]]:
        """A picture and the model's input for it."""
        picture = source if isinstance(source, Picture) else open_picture(source)
        height, width = picture.image.shape[:2]
        resized = T.AugInput(_reorder(picture.image, self.cfg.INPUT.FORMAT))
        request.resize(resized)
        self._check_side(request, picture, resized.image.shape[:2])
        image = torch.from_numpy(np.array(resized.image.transpose(2, 0, 1), order="C"))  # (C, H', W')
        return picture, {"image": image, "height": height, "width": width}

    def _check_side(self, request: Request, picture: Picture, seen: tuple[int, int]) -> None:
        """Complain about a picture that the model does not take while it can still be left out."""
        tiles = getattr(request.model, "tiled_inference", None)
        if tiles is not None and tiles.applies_to(seen):
            return
        least, most = self._sides
        if not least <= min(seen) <= max(seen) <= most:
            raise ValueError(
                f"{picture.path or 'a picture'}: the network would see {seen[0]} x {seen[1]} pixels (height x width), "
                f"and {self.cfg.MODEL.WEIGHTS} takes {least} to {most} a side; resize it by --size or size=."
            )

    @torch.inference_mode()
    def _segment(self, request: Request, batch: Sequence[tuple[Picture, dict[str, Any]]]) -> list[Result]:
        predictions = request.model([inputs for _, inputs in batch])
        results = []
        for (picture, _), prediction in zip(batch, predictions, strict=True):
            kept = _on_cpu(prediction, request.options.instance_threshold)
            results.append(Result(picture.image, request.tasks, kept, self.metadata, picture.path))
        return results

    def _is_full(self, result: Result) -> bool:
        """Whether instances may be missing, as of a large picture in tiles."""
        # The limit is one of candidates, some of which are less sure in the end than others that it left out.
        return len(result.predictions.get("instances", ())) > 0.9 * self.cfg.TEST.DETECTIONS_PER_IMAGE

    def _warn_of_limit(self, result: Result) -> None:
        """Say so where instances may be missing."""
        if self._is_full(result):
            logger.warning(
                "%s: has %d instances, of the %d that TEST.DETECTIONS_PER_IMAGE allows, so some may be missing. Raise "
                "it, as by --opts TEST.DETECTIONS_PER_IMAGE 1000; of an exported file, before the export.",
                result.path or "a picture",
                len(result.predictions["instances"]),
                self.cfg.TEST.DETECTIONS_PER_IMAGE,
            )


def _build(cfg: CfgNode) -> nn.Module:
    model = build_whole_model(cfg)
    if cfg.MODEL.INFERENCE.OPTIMIZE is None:
        cfg = with_opts(cfg, ["MODEL.INFERENCE.OPTIMIZE", _is_optimized_unasked(model)])
    model = prepare_for_inference(cfg, model)
    return SegmentorWithTTA(cfg, model).eval() if cfg.TEST.AUG.ENABLED else model


def _is_optimized_unasked(model: Any) -> bool:
    if type(model) is not MaskFormer:  # another class may do what its copy would not
        return False
    return model.device.type == "cpu" or is_nvidia(model.device)


def _reorder(rgb: np.ndarray, image_format: str) -> np.ndarray:
    if image_format == "L":
        return np.asarray(Image.fromarray(rgb).convert("L"))[:, :, np.newaxis]
    return rgb if image_format == "RGB" else np.ascontiguousarray(rgb[:, :, ::-1])


def _on_cpu(prediction: dict[str, Any], threshold: float) -> dict[str, Any]:
    """The model's result in main memory; instances at or above the threshold, the surest first."""
    result = dict(prediction)
    if "sem_seg" in result:
        result["sem_seg"] = result["sem_seg"].to("cpu", torch.float32)
    if "panoptic_seg" in result:
        ids, infos = result["panoptic_seg"]
        result["panoptic_seg"] = (ids.cpu(), infos)
    if "instances" in result:
        found = result["instances"]
        order = found.scores.argsort(descending=True, stable=True)
        result["instances"] = found[order[found.scores[order] >= threshold]].to("cpu")
    return result


def _frames(source: Any) -> Iterator[Picture]:
    video = source if hasattr(source, "read") else open_video(source if isinstance(source, int) else str(source))
    path = Path(source) if isinstance(source, str | Path) else None
    return (Picture(np.ascontiguousarray(frame[:, :, ::-1]), path) for frame in read_frames(video))


def _batches(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    while batch := list(islice(items, size)):
        yield batch
