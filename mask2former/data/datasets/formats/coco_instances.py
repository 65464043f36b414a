"""COCO instances: polygons and run lengths in one JSON file."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..categories import Category
from ..files import IMAGE_SUFFIXES, find_files
from ..json_files import read_flag, shown
from .coco_entries import entry_id, read_categories, read_coco, read_images
from .instances import InstanceFile

__all__ = ["CocoInstanceSource"]


@dataclass(frozen=True)
class CocoInstanceSource:
    """COCO instances.

    Attributes:
        images: Folder of images.
        annotations: The JSON file.
    """

    images: Path
    annotations: Path
    panoptic = False

    def files(self) -> list[Path]:
        if not self.annotations.is_file():
            read_coco(self.annotations)  # says so
        return [self.annotations, *find_files(self.images, IMAGE_SUFFIXES)]

    def categories(self) -> tuple[Category, ...]:
        return self._categories(read_coco(self.annotations))

    def _categories(self, content: dict[str, list[Any]]) -> tuple[Category, ...]:
        # Instances are of things, whatever "isthing" says.
        return tuple(replace(category, isthing=True) for category in read_categories(self.annotations, content))

    def convert(self, folder: Path, list_file: Path | None) -> tuple[Category, ...]:
        content = read_coco(self.annotations)
        result = InstanceFile(self._categories(content))
        images = read_images(self.annotations, self.images, content["images"], list_file, result.faults)
        for image_id, image in images.good.items():
            result.add_image(image_id, image["file_name"], (image["height"], image["width"]))
        category_ids = {category.id for category in result.categories}
        seen: set[Any] = set()
        for number, annotation in enumerate(content["annotations"], 1):
            place = f"annotation {entry_id(annotation, number)}"
            with result.faults.catch(self.annotations, place, images.name_of(annotation)):
                if not isinstance(annotation, dict):
                    raise ValueError(f"is {shown(annotation)}, expected an object.")
                if images.is_left_out(annotation):
                    continue
                _check(annotation, images.good, category_ids, seen)
                result.add(
                    annotation["image_id"],
                    annotation["category_id"],
                    annotation.get("segmentation", []),
                    iscrowd=read_flag(annotation, "iscrowd"),
                )
        result.write(folder)
        return result.categories

    def segments(self, folder: Path) -> Path:
        raise NotImplementedError


def _check(
    annotation: dict[str, Any], images: Collection[int | str], category_ids: Collection[int], seen: set[Any]
) -> None:
    number = annotation.get("id")
    if isinstance(number, int | str):
        if number in seen:
            raise ValueError('id occurs more than once in "annotations".')
        seen.add(number)
    for key, known, where in (("image_id", images, "images"), ("category_id", category_ids, "categories")):
        value = annotation.get(key)
        if not isinstance(value, int | str) or value not in known:
            raise ValueError(f'has {key} {shown(value)}, which is not in "{where}".')
