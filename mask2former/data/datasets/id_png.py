"""Own data as images and PNGs of ids, converted once into COCO's panoptic form."""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..image_io import image_size, read_label_image
from ..panoptic_png import check_label_size, write_panoptic_png
from .cache import build_once, cache_folder, run_parallel
from .categories import Category, panoptic_metadata, panoptic_order
from .coco_panoptic import load_coco_panoptic
from .derived import ignore_label, instance_annotations, write_instances_json, write_semantic_png
from .files import IMAGE_SUFFIXES, find_files, match_files, read_lines
from .segments import VOID, split_segments

__all__ = ["IdPngDataset"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdPngDataset:
    """A folder of images, and folders of PNGs of the same names.

    A segment is all pixels of one class and, if that is a thing, of one instance id: ids may restart with every class.
    Pixels of a thing without instance id are a crowd.

    Attributes:
        name: Of the data set.
        images: Folder of images.
        instances: Folder of PNGs of instance ids, 0 for none; or None.
        classes: Folder of PNGs of class values; or None, then instances are of the first category, and all else is of
            the second if there is one.
        categories: The classes; a category's id is its value in the PNGs of classes plus 1.
        ignore_values: Values of unlabelled pixels in ``classes``.
        list_file: Names the images to take; None takes all.
    """

    name: str
    images: Path
    instances: Path | None
    classes: Path | None
    categories: tuple[Category, ...]
    ignore_values: tuple[int, ...] = (255,)
    list_file: Path | None = None

    def metadata(self) -> dict[str, Any]:
        """What Detectron2's catalog should know; files are named only where the folders exist."""
        known = {
            **panoptic_metadata(self.categories),
            "image_root": str(self.images),
            "evaluator_type": "coco_panoptic_seg",
            "ignore_label": ignore_label(len(self.categories)),
            "label_divisor": 1000,
        }
        there = all(folder.is_dir() for folder in self._folders()) and (not self.list_file or self.list_file.is_file())
        return {**known, **self._files()} if there else known

    def load(self) -> list[dict[str, Any]]:
        """The dataset dicts; the first call converts the folders."""
        if self.list_file:
            read_lines(self.list_file)  # an error of its own where it is missing
        files = self._files()
        build_once(Path(files["panoptic_json"]).parent, self._convert)
        return load_coco_panoptic(
            files["panoptic_json"], self.images, files["panoptic_root"], files["sem_seg_root"], self.metadata()
        )

    def _folders(self) -> list[Path]:
        return [folder for folder in (self.images, self.instances, self.classes) if folder is not None]

    def _files(self) -> dict[str, str]:
        sources = [file for folder in self._folders() for file in find_files(folder, IMAGE_SUFFIXES)]
        folder = cache_folder(self.name, self, sources + ([self.list_file] if self.list_file else []))
        return {
            "panoptic_json": str(folder / "panoptic.json"),
            "panoptic_root": str(folder / "panoptic"),
            "sem_seg_root": str(folder / "semantic"),
            "json_file": str(folder / "instances.json"),
        }

    def _convert(self, folder: Path) -> None:
        """Write everything into ``folder``."""
        (folder / "panoptic").mkdir()
        matched = match_files(self.images, self._folders()[1:], self.list_file)
        converted = run_parallel(
            lambda task: self._convert_image(folder, task[0], *task[1]),
            list(enumerate(matched, 1)),
            f"Converting {self.name}",
        )
        images, panoptic, instances = map(list, zip(*converted, strict=True))
        content = {
            "images": images,
            "annotations": panoptic,
            "categories": [category.to_coco() for category in self.categories],
        }
        (folder / "panoptic.json").write_text(json.dumps(content))
        write_instances_json(folder / "instances.json", images, instances, self.categories)
        counts = Counter(segment["category_id"] for annotation in panoptic for segment in annotation["segments_info"])
        summary = ", ".join(f"{category.name} {counts[category.id]}" for category in self.categories)
        _LOGGER.info(f"{self.name}: {len(images)} images; segments: {summary}.")

    def _convert_image(
        self, folder: Path, number: int, image: Path, *masks: Path
    ) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """Write the PNGs of one image; returns its entries of "images", panoptic and instance "annotations"."""
        height, width = image_size(image)
        ids = [read_label_image(mask) for mask in masks]
        for mask, labels in zip(masks, ids, strict=True):
            check_label_size(mask, labels, (height, width))
        instances = ids[0] if self.instances else np.zeros((height, width), dtype=np.int64)
        classes = self._classes_of(masks[-1], ids[-1])
        dataset_ids = dict(enumerate(category.id for category in panoptic_order(self.categories)))
        num_things = sum(category.isthing for category in self.categories)
        numbers, segments = split_segments(classes, instances, num_things)
        png = f"{number:06d}_{image.stem}.png"  # the number, since folders may repeat names
        write_panoptic_png(folder / "panoptic" / png, numbers)
        write_semantic_png(folder / "semantic" / png, numbers, segments, len(self.categories))
        file_name = image.relative_to(self.images).as_posix()
        return (
            {"id": number, "file_name": file_name, "height": height, "width": width},
            {
                "image_id": number,
                "file_name": png,
                "segments_info": [
                    {**segment, "category_id": dataset_ids[segment["category_id"]]} for segment in segments
                ],
            },
            instance_annotations(number, numbers, segments, dataset_ids),
        )

    def _classes_of(self, path: Path, values: np.ndarray) -> np.ndarray:
        """Contiguous classes (H, W) of the values of the last mask; -1 is void."""
        if self.classes is None:
            return np.where(values > 0, 0, 1 if len(self.categories) > 1 else VOID)
        unknown = -2
        largest = max([category.id - 1 for category in self.categories] + list(self.ignore_values))
        lookup = np.full(largest + 2, unknown)
        lookup[list(self.ignore_values)] = VOID
        for contiguous, category in enumerate(panoptic_order(self.categories)):
            lookup[category.id - 1] = contiguous
        classes = lookup[values.clip(max=largest + 1)]
        if (classes == unknown).any():
            allowed = sorted({category.id - 1 for category in self.categories} | set(self.ignore_values))
            raise ValueError(
                f"{path}: has class value {values[classes == unknown].max()}, expected one of {allowed}: the places in "
                "CLASS_NAMES, counted from 0, and IGNORE_VALUE. Complete CLASS_NAMES, or correct the file."
            )
        return classes
