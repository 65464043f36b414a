"""What the formats of instances (COCO, YOLO, Labelme) have in common: they become one COCO file."""

import json
from pathlib import Path
from typing import Any

from ..categories import Category
from ..faults import Faults
from .masks import measure_segmentation
from .source import FAULTS_FILE, INSTANCES_FILE

__all__ = ["InstanceFile"]


class InstanceFile:
    """A COCO file in the making, and the faults of what does not get into it.

    Args:
        categories: The classes.
    """

    def __init__(self, categories: tuple[Category, ...]) -> None:
        self.categories = categories
        self.faults = Faults()
        self._images: dict[int | str, dict[str, Any]] = {}
        self._annotations: list[dict[str, Any]] = []

    def add_image(self, image_id: int | str, file_name: str, size: tuple[int, int]) -> None:
        """Add an image of a size (height, width)."""
        self._images[image_id] = {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}

    def add(self, image_id: int | str, category_id: int, segmentation: Any, *, iscrowd: bool = False) -> None:
        """Add an instance.

        Raises:
            ValueError: Its mask is wrong.
        """
        image = self._images[image_id]
        measured = measure_segmentation(segmentation, (image["height"], image["width"]))
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,  # pycocotools takes 0 for no match
                "image_id": image_id,
                "category_id": category_id,
                "iscrowd": int(iscrowd),
                **measured,
            }
        )

    def write(self, folder: Path) -> None:
        """Write the file, and that of faults."""
        content = {
            "info": {"description": "checked and written by mask2former"},  # pycocotools needs the key
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": [category.to_coco() for category in self.categories],
        }
        (folder / INSTANCES_FILE).write_text(json.dumps(content))
        (folder / FAULTS_FILE).write_text(json.dumps(self.faults.to_json()))
