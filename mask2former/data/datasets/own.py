"""A data set of your own: an annotation format, read, checked and converted once, and loaded from then on."""

import json
import logging
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from .cache import build_once, cache_folder
from .categories import Category, panoptic_metadata, thing_metadata
from .coco_panoptic import load_coco_panoptic
from .derived import ignore_label
from .files import read_lines
from .formats.faults import DataError, Fault, list_faults
from .formats.source import FAULTS_FILE, INSTANCES_FILE, PANOPTIC_FILE, Source, choose_images

__all__ = ["CustomDataset"]

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
        try:
            folders = self._folders()
        except FileNotFoundError:
            folders = None
        try:
            known |= self._class_metadata(folders)
        except FileNotFoundError:
            return known
        return known | self._file_metadata(folders) if folders else known

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
        folders = self._folders()
        build_once(folders.of_list, lambda unfinished: self._convert(folders, unfinished))
        folders = self._folders()  # the pictures may be with the conversion of all images
        faults = [Fault(**entry) for entry in json.loads((folders.of_list / FAULTS_FILE).read_text())]
        files = self._file_metadata(folders)
        if not self.source.panoptic:
            return self._load_instances(files["json_file"], self._class_metadata(folders)), faults
        records = load_coco_panoptic(
            files["panoptic_json"],
            self.source.images,
            files["panoptic_root"],
            files["sem_seg_root"],
            self._class_metadata(folders),
        )
        return records, faults

    def _load_instances(self, file: str, metadata: dict[str, Any]) -> list[dict[str, Any]]:
        contiguous = metadata["thing_dataset_id_to_contiguous_id"]
        records: list[dict[str, Any]] = load_coco_json(file, str(self.source.images))  # leaves the catalog alone
        for annotation in (annotation for record in records for annotation in record["annotations"]):
            annotation["category_id"] = contiguous[annotation["category_id"]]
        return records

    def _convert(self, folders: "_Folders", unfinished: Path) -> None:
        if folders.of_list != folders.of_all and folders.of_all.is_dir():
            _write_subset(folders.of_all, unfinished, self.list_file)
        else:
            self.source.convert(unfinished, self.list_file)
        categories = [asdict(category) for category in self.source.categories()]
        (unfinished / _CATEGORIES).write_text(json.dumps(categories))

    def _categories(self, folders: "_Folders | None") -> tuple[Category, ...]:
        """The classes; from the conversion if it is there, for the source's file may be large."""
        if folders is None or not (folders.of_list / _CATEGORIES).is_file():
            return self.source.categories()
        entries = json.loads((folders.of_list / _CATEGORIES).read_text())
        return tuple(Category(**{**entry, "color": entry["color"] and tuple(entry["color"])}) for entry in entries)

    def _class_metadata(self, folders: "_Folders | None") -> dict[str, Any]:
        categories = self._categories(folders)
        if self.source.panoptic:
            return {**panoptic_metadata(categories), "ignore_label": ignore_label(len(categories))}
        return thing_metadata(categories)

    def _file_metadata(self, folders: "_Folders") -> dict[str, str]:
        known = {"json_file": str(folders.of_list / INSTANCES_FILE)}
        if self.source.panoptic:
            known["panoptic_json"] = str(folders.of_list / PANOPTIC_FILE)
            known["panoptic_root"] = str(self.source.segments(folders.of_pictures))
            known["sem_seg_root"] = str(folders.of_pictures / "semantic")
        return known

    def _folders(self) -> "_Folders":
        if self.list_file:
            read_lines(self.list_file)  # an error of its own where it is missing
        files = self.source.files()
        of_all = cache_folder(self.source.images.name, self.source, files)
        if self.list_file is None:
            return _Folders(of_all, of_all, of_all)
        of_list = cache_folder(self.name, (self.source, self.list_file), [*files, self.list_file])
        if not (of_list / _ORIGIN).is_file():
            return _Folders(of_all, of_list, of_list)
        if not of_all.is_dir():  # somebody has tidied up
            shutil.rmtree(of_list)
            return _Folders(of_all, of_list, of_list)
        return _Folders(of_all, of_list, of_all)


@dataclass(frozen=True)
class _Folders:
    """Where the conversion is: of all images, of those on the list, and the pictures that were made for the latter."""

    of_all: Path
    of_list: Path
    of_pictures: Path


_CATEGORIES = "categories.json"
_ORIGIN = "cut_out.txt"  # tells that the conversion of a list was cut out of that of all images


def _write_subset(whole: Path, folder: Path, list_file: Path | None) -> None:
    """Write the JSON files of some of the images that are converted already."""
    content = json.loads((whole / INSTANCES_FILE).read_text())
    faults = json.loads((whole / FAULTS_FILE).read_text())
    bad = {fault["image"] for fault in faults if fault["image"]}
    names = set(choose_images({image["file_name"] for image in content["images"]} | bad, list_file, whole))
    for file in (INSTANCES_FILE, PANOPTIC_FILE):
        if (whole / file).is_file():
            content = _subset(json.loads((whole / file).read_text()), names)
            (folder / file).write_text(json.dumps(content))
    faults = [fault for fault in faults if fault["image"] is None or fault["image"] in names]
    (folder / FAULTS_FILE).write_text(json.dumps(faults))
    (folder / _ORIGIN).write_text(str(whole))


def _subset(content: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    images = [image for image in content["images"] if image["file_name"] in names]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}
