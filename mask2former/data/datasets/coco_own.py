"""Own data in COCO's own files."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from ..panoptic_png import read_segment_numbers
from .cache import build_once, cache_folder, run_parallel
from .categories import Category, panoptic_metadata, panoptic_order, thing_metadata
from .coco_panoptic import load_coco_panoptic
from .derived import ignore_label, instance_annotations, write_instances_json, write_semantic_png
from .files import IMAGE_SUFFIXES, find_files

__all__ = ["CocoInstanceDataset", "CocoPanopticDataset"]


@dataclass(frozen=True)
class CocoInstanceDataset:
    """COCO instances: polygons and run lengths in one JSON file.

    Attributes:
        name: Of the data set.
        images: Folder of images.
        annotations: The JSON file.
    """

    name: str
    images: Path
    annotations: Path

    def metadata(self) -> dict[str, Any]:
        """What Detectron2's catalog should know; the classes only where the file exists."""
        known = {"image_root": str(self.images), "json_file": str(self.annotations), "evaluator_type": "coco"}
        if not self.annotations.is_file():
            return known
        categories = _categories(self.annotations, _read_json(self.annotations))
        return {**known, **thing_metadata([Category(c.id, c.name, True, c.color) for c in categories])}

    def load(self) -> list[dict[str, Any]]:
        """The dataset dicts, with "annotations"."""
        content = _read_json(self.annotations)
        _check_annotations(self.annotations, content)
        _check_images(self.annotations, self.images, content)
        return load_coco_json(str(self.annotations), str(self.images), self.name)


@dataclass(frozen=True)
class CocoPanopticDataset:
    """COCO panoptic: a JSON file, and a folder of PNGs of segment ids.

    Attributes:
        name: Of the data set.
        images: Folder of images.
        annotations: The JSON file.
        segments: Folder of PNGs.
    """

    name: str
    images: Path
    annotations: Path
    segments: Path

    def metadata(self) -> dict[str, Any]:
        """What Detectron2's catalog should know; the classes only where the file exists."""
        known = {
            "image_root": str(self.images),
            "panoptic_root": str(self.segments),
            "panoptic_json": str(self.annotations),
            "evaluator_type": "coco_panoptic_seg",
            "label_divisor": 1000,
        }
        if not (self.annotations.is_file() and self.segments.is_dir()):
            return known
        categories = _categories(self.annotations, _read_json(self.annotations))
        folder = self._cache_folder()
        return {
            **known,
            **panoptic_metadata(categories),
            "ignore_label": ignore_label(len(categories)),
            "sem_seg_root": str(folder / "semantic"),
            "json_file": str(folder / "instances.json"),
        }

    def load(self) -> list[dict[str, Any]]:
        """The dataset dicts; the first call derives semantic PNGs and COCO instances."""
        content = _read_json(self.annotations)
        _check_images(self.annotations, self.images, content)
        folder = self._cache_folder()
        metadata = self.metadata()
        dicts = load_coco_panoptic(self.annotations, self.images, self.segments, folder / "semantic", metadata)
        _check_all_annotated(self.annotations, content)
        build_once(folder, lambda unfinished: self._derive(unfinished, folder, dicts, content["images"]))
        return dicts

    def _cache_folder(self) -> Path:
        return cache_folder(self.name, self, [self.annotations, *find_files(self.segments, (".png",))])

    def _derive(self, folder: Path, final: Path, dicts: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
        """Write into ``folder`` what ``dicts`` expect in ``final``."""
        categories = _categories(self.annotations, _read_json(self.annotations))
        dataset_ids = dict(enumerate(category.id for category in panoptic_order(categories)))

        def derive(dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
            numbers = read_segment_numbers(dataset_dict, (dataset_dict["height"], dataset_dict["width"]))
            segments = dataset_dict["segments_info"]
            path = Path(dataset_dict["sem_seg_file_name"]).relative_to(final)
            write_semantic_png(folder / path, numbers, segments, len(categories))
            return instance_annotations(dataset_dict["image_id"], numbers, segments, dataset_ids)

        annotations = run_parallel(derive, dicts, f"Converting {self.name}")
        write_instances_json(folder / "instances.json", images, annotations, categories)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Relative paths start at $DETECTRON2_DATASETS (default ./datasets)."
        )
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error}).") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f'{path}: has no list "{key}", expected a COCO annotation file.')
    return content


def _categories(path: Path, content: dict[str, Any]) -> list[Category]:
    categories = [Category.from_coco(entry) for entry in content["categories"]]
    _check_unique(path, "categories", [category.id for category in categories])
    return categories


def _check_images(path: Path, folder: Path, content: dict[str, Any]) -> None:
    """Every image of the file is in the folder."""
    _check_unique(path, "images", [image["id"] for image in content["images"]])
    present = {file.relative_to(folder).as_posix() for file in find_files(folder, IMAGE_SUFFIXES)}
    missing = [image["file_name"] for image in content["images"] if image["file_name"] not in present]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}: no such file, but {path} lists it ({len(missing)} of {len(content['images'])} "
            "images are missing). Check IMAGES."
        )


def _check_annotations(path: Path, content: dict[str, Any]) -> None:
    """Every annotation is of a listed image and category, and has a mask."""
    _check_unique(path, "annotations", [annotation["id"] for annotation in content["annotations"]])
    known = {key: {entry["id"] for entry in content[key]} for key in ("images", "categories")}
    for annotation in content["annotations"]:
        for key, reference in (("images", "image_id"), ("categories", "category_id")):
            if annotation[reference] not in known[key]:
                raise ValueError(
                    f"{path}: annotation {annotation['id']} has {reference} {annotation[reference]}, "
                    f'which is not in "{key}".'
                )
        if not annotation.get("segmentation"):
            raise ValueError(
                f"{path}: annotation {annotation['id']} has no segmentation, expected polygons or an RLE. Boxes alone "
                "cannot train masks: add it or remove the annotation."
            )


def _check_all_annotated(path: Path, content: dict[str, Any]) -> None:
    """Every image has one panoptic annotation."""
    annotated = [annotation["image_id"] for annotation in content["annotations"]]
    _check_unique(path, "annotations", annotated)
    known = set(annotated)
    missing = [image for image in content["images"] if image["id"] not in known]
    if missing:
        raise ValueError(
            f"{path}: {missing[0]['file_name']} is not annotated ({len(missing)} of {len(content['images'])} images). "
            'Give it an annotation, whose "segments_info" may be empty, or take it out of "images".'
        )


def _check_unique(path: Path, key: str, ids: list[int]) -> None:
    number, count = max(Counter(ids).items(), key=lambda item: item[1], default=(0, 0))
    if count > 1:
        raise ValueError(f'{path}: id {number} occurs more than once in "{key}".')
