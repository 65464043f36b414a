"""What the formats of segments (COCO panoptic, id-PNGs, colour PNGs) have in common."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..cache import run_parallel
from ..categories import Category
from ..derived import write_instances_json
from ..faults import DataError, Faults
from .source import FAULTS_FILE, INSTANCES_FILE, PANOPTIC_FILE

__all__ = ["PanopticImage", "convert_images", "write_panoptic"]

Task = TypeVar("Task")


@dataclass(frozen=True)
class PanopticImage:
    """What one image adds to COCO's files.

    Attributes:
        image: Entry of "images".
        segments: Its panoptic annotation.
        instances: Its instance annotations, without ids.
    """

    image: dict[str, Any]
    segments: dict[str, Any]
    instances: list[dict[str, Any]]


def convert_images(
    convert: Callable[[Task], PanopticImage],
    tasks: Sequence[tuple[Task, Path, str]],
    faults: Faults,
    description: str,
) -> list[PanopticImage]:
    """Convert images in threads; those that cannot be become faults.

    Args:
        convert: Converts one, or raises ValueError, FileNotFoundError or DataError.
        tasks: Its arguments, each with the file to blame where an error does not name one, and the image's name.
        faults: Receives what is wrong.
        description: Of the progress bar.
    """

    def attempt(task: tuple[Task, Path, str]) -> PanopticImage | Exception:
        try:
            return convert(task[0])
        except (ValueError, FileNotFoundError) as error:
            return error

    good = []
    for (_, path, name), result in zip(tasks, run_parallel(attempt, tasks, description), strict=True):
        if isinstance(result, DataError):
            faults.found += result.faults
        elif isinstance(result, Exception):
            faults.add(path, str(result), image=name)
        else:
            good.append(result)
    return good


def write_panoptic(
    folder: Path, images: Sequence[PanopticImage], categories: Sequence[Category], faults: Faults
) -> None:
    """Write ``panoptic.json``, ``instances.json`` and ``faults.json``."""
    content = {
        "images": [image.image for image in images],
        "annotations": [image.segments for image in images],
        "categories": [category.to_coco() for category in categories],
    }
    (folder / PANOPTIC_FILE).write_text(json.dumps(content))
    write_instances_json(folder / INSTANCES_FILE, content["images"], [image.instances for image in images], categories)
    (folder / FAULTS_FILE).write_text(json.dumps(faults.to_json()))
