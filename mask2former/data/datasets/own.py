"""A data set of your own: an annotation format, read, checked and converted once, and loaded from then on."""

import json
import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from .cache import build_once, cache_folder
from .categories import Category, panoptic_metadata, thing_metadata
from .coco_panoptic import load_coco_panoptic
from .derived import ignore_label
from .faults import DataError, Fault, list_faults
from .files import read_lines
from .formats.source import FAULTS_FILE, INSTANCES_FILE, PANOPTIC_FILE, Source, choose_images

__all__ = ["CustomDataset"]

_CATEGORIES = "categories.json"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class CustomDataset:
    """A data set of your own.

    Attributes:
        name: Of the data set.
        source: Its files.
        list_file: Names the images to take, one a line; None takes all.
        skip_bad: Leave out what is wrong; otherwise that is an error.
    """

    name: str
    source: Source
    list_file: Path | None = None
    skip_bad: bool = False

    def metadata(self) -> dict[str, Any]:
        """What Detectron2's catalog should know; classes and files only as far as the source is there."""
        known: dict[str, Any] = {"image_root": str(self.source.images), "evaluator_type": "coco"}
        if self.source.panoptic:
            known |= {"evaluator_type": "coco_panoptic_seg", "label_divisor": 1000}
        folder = None
        with suppress(FileNotFoundError):
            folder, _ = self._folders()
        try:
            known |= self._class_metadata(folder)
        except FileNotFoundError:
            return known
        return known | self._file_metadata(folder) if folder else known

    def load(self) -> list[dict[str, Any]]:
        """The dataset dicts; the first call checks and converts.

        Raises:
            FileNotFoundError: The source or the list is not there.
            DataError: Something is wrong, unless ``skip_bad``, and then it is logged.
        """
        records, faults = self.read()
        if faults and not self.skip_bad:
            raise DataError(faults)
        if faults:
            _LOGGER.warning(f"{self.name}: left out, since SKIP_BAD is on: {list_faults(faults)}")
        if not records:
            raise DataError([*faults, Fault(str(self.source.images), "no image is left to use.")])
        return records

    def read(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """What is right, as dataset dicts, and what is wrong.

        Raises:
            FileNotFoundError: The source or the list is not there.
            DataError: Nothing can be made of it.
        """
        folder, of_all = self._folders()
        build_once(folder, lambda unfinished: self._convert(unfinished, of_all))
        faults = [Fault(**entry) for entry in json.loads((folder / FAULTS_FILE).read_text())]
        files = self._file_metadata(folder)
        if not self.source.panoptic:
            return self._load_instances(files["json_file"], self._class_metadata(folder)), faults
        records = load_coco_panoptic(
            files["panoptic_json"],
            self.source.images,
            files["panoptic_root"],
            files["sem_seg_root"],
            self._class_metadata(folder),
        )
        return records, faults

    def _load_instances(self, file: str, metadata: dict[str, Any]) -> list[dict[str, Any]]:
        contiguous = metadata["thing_dataset_id_to_contiguous_id"]
        records: list[dict[str, Any]] = load_coco_json(file, str(self.source.images))  # leaves the catalog alone
        for annotation in (annotation for record in records for annotation in record["annotations"]):
            annotation["category_id"] = contiguous[annotation["category_id"]]
        return records

    def _convert(self, unfinished: Path, of_all: Path) -> None:
        if self.list_file is not None and of_all.is_dir():
            _write_subset(of_all, unfinished, self.list_file)
            categories = self._categories(of_all)
        else:
            categories = self.source.convert(unfinished, self.list_file)
        (unfinished / _CATEGORIES).write_text(json.dumps([asdict(category) for category in categories]))

    def _categories(self, folder: Path | None) -> tuple[Category, ...]:
        """The classes; from the conversion if it is there, for the source's file may be large."""
        if folder is None or not (folder / _CATEGORIES).is_file():
            return self.source.categories()
        entries = json.loads((folder / _CATEGORIES).read_text())
        return tuple(Category(**{**entry, "color": entry["color"] and tuple(entry["color"])}) for entry in entries)

    def _class_metadata(self, folder: Path | None) -> dict[str, Any]:
        categories = self._categories(folder)
        if self.source.panoptic:
            return {**panoptic_metadata(categories), "ignore_label": ignore_label(len(categories))}
        return thing_metadata(categories)

    def _file_metadata(self, folder: Path) -> dict[str, str]:
        known = {"json_file": str(folder / INSTANCES_FILE)}
        if self.source.panoptic:
            known["panoptic_json"] = str(folder / PANOPTIC_FILE)
            known["panoptic_root"] = str(self.source.segments(folder))
            known["sem_seg_root"] = str(folder / "semantic")
        return known

    def _folders(self) -> tuple[Path, Path]:
        """Where the conversion is, and where that of all images is: the same without a list."""
        if self.list_file:
            read_lines(self.list_file)  # an error of its own where it is missing
        files = self.source.files()
        of_all = cache_folder(self.source.images.name, self.source, files)
        if self.list_file is None:
            return of_all, of_all
        folder = cache_folder(self.name, (self.source, self.list_file), [*files, self.list_file])
        if any(entry.is_symlink() and not entry.exists() for entry in folder.glob("*")):
            shutil.rmtree(folder)  # somebody has removed the conversion that it was cut out of
        return folder, of_all


def _write_subset(whole: Path, folder: Path, list_file: Path) -> None:
    """Write the JSON files of some of the images that are converted already, and link to their pictures."""
    files = [file for file in (INSTANCES_FILE, PANOPTIC_FILE) if (whole / file).is_file()]
    contents = {file: json.loads((whole / file).read_text()) for file in files}
    faults = json.loads((whole / FAULTS_FILE).read_text())
    bad = {fault["image"] for fault in faults if fault["image"]}
    known = {image["file_name"] for image in contents[INSTANCES_FILE]["images"]}
    names = set(choose_images(known | bad, list_file, whole))
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(_subset(content, names)))
    faults = [fault for fault in faults if fault["image"] is None or fault["image"] in names]
    (folder / FAULTS_FILE).write_text(json.dumps(faults))
    for pictures in (entry for entry in whole.iterdir() if entry.is_dir()):
        (folder / pictures.name).symlink_to(pictures)


def _subset(content: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    images = [image for image in content["images"] if image["file_name"] in names]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}
