"""The model's result as files: a drawing, JSON, and a PNG of ids."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

from mask2former.data.datasets.files import IMAGE_SUFFIXES
from mask2former.durable_files import write_file
from mask2former.evaluation.run_lengths import encode_mask
from mask2former.visualization import Task, class_name

__all__ = [
    "ResultFiles",
    "describe_segments",
    "id_map",
    "make_folder",
    "plan_outputs",
    "plan_video_outputs",
    "save_results",
    "write_image",
]


_MAX_ID = np.iinfo(np.uint16).max
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultFiles:
    """The files of one picture's result.

    Attributes:
        drawing: the picture with the segments on it.
        json: what they are.
        ids: of every pixel's segment; not written for instances, which may overlap.
    """

    drawing: Path
    json: Path
    ids: Path

    @classmethod
    def of_drawing(cls, drawing: Path) -> "ResultFiles":
        """Beside a drawing: ``a.jpg``, ``a.json``, ``a_ids.png``."""
        return cls(drawing, drawing.with_suffix(".json"), drawing.with_name(f"{drawing.stem}_ids.png"))

    @classmethod
    def at(cls, output: Path, picture: Path) -> "ResultFiles":
        """``output`` is the drawing's file (a name that ends as pictures do), or a folder for it."""
        if not output.is_dir() and output.suffix.lower() in IMAGE_SUFFIXES:
            return cls.of_drawing(output)
        suffix = picture.suffix if picture.suffix.lower() in IMAGE_SUFFIXES else ".png"
        return cls.of_drawing(output / (picture.stem + suffix))

    @property
    def paths(self) -> set[Path]:
        """All of them."""
        return {self.drawing, self.json, self.ids}


def plan_outputs(pictures: Sequence[Path], output: Path) -> list[ResultFiles]:
    """Choose the files to write.

    Args:
        pictures: files, each once.
        output: a folder; or, for a single picture, the file of its drawing (a name that ends as pictures do).

    Returns:
        The files of each picture. Names that would clash get a number.

    Raises:
        ValueError: a result would overwrite a picture that is to be read, or several are to go to one file.
    """
    if len(pictures) > 1 and not output.is_dir() and output.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{output} is one file, but there are {len(pictures)} pictures; give a folder as --output")
    taken: set[Path] = set()
    numbers: dict[Path, int] = {}
    planned = []
    for picture in pictures:
        wanted = ResultFiles.at(output, picture).drawing
        files = next(f for f in map(ResultFiles.of_drawing, _names_like(wanted, numbers)) if not taken & f.paths)
        taken |= files.paths
        planned.append(files)
    _check_none_is_read(taken, pictures)
    return planned


def make_folder(folder: Path) -> None:
    """Make a folder for results, if it is not there.

    Raises:
        OSError: that cannot be done, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be made a folder for results ({error.strerror}); choose another one"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"{folder}: nothing may be written into this folder; choose another one for results")


def plan_video_outputs(videos: Sequence[Path], output: Path) -> list[Path]:
    """Choose the files to write.

    Args:
        videos: to be read.
        output: a folder; or, for a single video, the file.

    Returns:
        The file of each video; in a folder, ``<name of the video>.mp4``. Names that would clash get a number.

    Raises:
        ValueError: that would overwrite a video that is to be read, or several are to go to one file.
    """
    is_file = output.suffix != "" and not output.is_dir()
    if is_file and len(videos) > 1:
        raise ValueError(f"{output} is one file, but there are {len(videos)} videos; give a folder as --output")
    numbers: dict[Path, int] = {}
    planned: list[Path] = []
    for video in videos:
        wanted = output if is_file else output / f"{video.stem}.mp4"
        planned.append(next(name for name in _names_like(wanted, numbers) if name not in planned))
    _check_none_is_read(planned, videos)
    return planned


def _names_like(wanted: Path, numbers: dict[Path, int]) -> Iterator[Path]:
    """``a.png``, ``a_2.png``, ``a_3.png``, ...; the next call goes on where the last one with ``numbers`` ended."""
    while True:
        number = numbers[wanted] = numbers.get(wanted, 0) + 1
        yield wanted if number == 1 else wanted.with_stem(f"{wanted.stem}_{number}")


def _check_none_is_read(written: Iterable[Path], read: Iterable[Path]) -> None:
    overwritten = {path.resolve() for path in written} & {path.resolve() for path in read}
    if overwritten:
        raise ValueError(f"{min(overwritten)} would be overwritten by a result; choose another --output")


def save_results(
    predictions: Mapping[str, Any], task: Task, metadata: Any, *, file_name: str, files: ResultFiles
) -> int:
    """Write what was found: an object with ``file_name``, ``height``, ``width``, ``task``, ``segments`` and ``id_map``.

    Args:
        predictions: the model's result for one picture.
        task: which part of the result is meant.
        metadata: names of the classes.
        file_name: of the picture.
        files: ``json`` gets the object; its ``segments`` are those of :func:`describe_segments`. ``ids`` gets the ids
            of the pixels as 16-bit gray PNG, and is named in ``id_map``. Instances may overlap, so they have none:
            there ``id_map`` is null, as where there are more segments than 16 bits can number.

    Returns:
        The number of segments.
    """
    record: dict[str, Any] = {"file_name": file_name, "task": task, "id_map": None}
    if task == "instance":
        record["height"], record["width"] = predictions["instances"].image_size
    else:
        ids = id_map(predictions, task)
        record["height"], record["width"] = ids.shape
        if ids.max() <= _MAX_ID:
            record["id_map"] = files.ids.name
            write_image(files.ids, ids.astype(np.uint16))
        else:
            logger.warning(
                "%s: is not written, for there are %d segments, more than 16 bits can number; their masks are in %s.",
                files.ids,
                ids.max(),
                files.json.name,
            )
    record["segments"] = describe_segments(predictions, task, metadata)
    write_file(files.json, (json.dumps(record, indent=1) + "\n").encode())
    return len(record["segments"])


def describe_segments(predictions: Mapping[str, Any], task: Task, metadata: Any) -> list[dict[str, Any]]:
    """List the segments of a result.

    Returns:
        For each segment ``id`` (from 1), ``category_id`` (contiguous, as in training), ``category_name``, ``isthing``,
        ``score`` (0..1, or None where the model gives none), ``area`` in pixels, ``bbox`` [x, y, width, height] in
        pixels and ``segmentation``, the mask in COCO's compressed run-length form.
    """
    segments = []
    for segment, mask in _segments(predictions, task):
        rle = encode_mask(mask)
        segment["category_name"] = class_name(metadata, segment["category_id"], segment["isthing"])
        segment["area"] = int(mask_util.area(rle))
        segment["bbox"] = [int(value) for value in mask_util.toBbox(rle)]
        segment["segmentation"] = rle
        segments.append(segment)
    return segments


def id_map(predictions: Mapping[str, Any], task: Task) -> np.ndarray:
    """The ``id`` of every pixel's segment: (H, W) int32, 0 where there is none.

    Ids of panoptic segments are the model's own; that of a semantic class is one more than the class.
    """
    if task == "panoptic":
        return predictions["panoptic_seg"][0].cpu().numpy().astype(np.int32)
    return predictions["sem_seg"].argmax(0).cpu().numpy().astype(np.int32) + 1


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR, or (H, W) uint8 or uint16, in the format that the name says.

    Raises:
        OSError: it cannot be written.
    """
    # Not OpenCV's imwrite, which does not see that a small file found no room, and crashes at names that are not UTF-8.
    done, encoded = cv2.imencode(path.suffix, image)
    if not done:
        height, width = image.shape[:2]
        raise OSError(f"{path}: {width} x {height} pixels do not fit in a file of that type; name it .png.")
    write_file(path, encoded.tobytes())


def _segments(predictions: Mapping[str, Any], task: Task) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """What is known of each segment, and its mask (H, W) bool."""
    if task == "instance":
        instances = predictions["instances"].to("cpu")
        columns = zip(instances.pred_classes.tolist(), instances.scores.tolist(), instances.pred_masks, strict=True)
        for i, (class_id, score, mask) in enumerate(columns, start=1):
            yield {"id": i, "category_id": class_id, "isthing": True, "score": score}, mask.numpy()
        return
    ids = np.asfortranarray(id_map(predictions, task))  # column by column, as run lengths go
    if task == "panoptic":
        for info in predictions["panoptic_seg"][1]:
            isthing, score = bool(info["isthing"]), info.get("score")
            known = {"id": info["id"], "category_id": info["category_id"], "isthing": isthing, "score": score}
            yield known, ids == info["id"]
    else:
        for i in np.unique(ids).tolist():
            yield {"id": i, "category_id": i - 1, "isthing": False, "score": None}, ids == i
