"""A small data set of your own in every format: red and blue rectangles on grey, some pictures without any."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["FORMATS", "NAMES", "Box", "Picture", "make_pictures", "write_data"]

NAMES = ["brick", "tile"]
COLORS = {"background": (0, 0, 0), "brick": (200, 0, 0), "tile": (0, 0, 200)}


@dataclass(frozen=True)
class Box:
    """A rectangle: pixels left <= x < right, top <= y < bottom, of the class NAMES[class_id]."""

    class_id: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def corners(self) -> list[list[float]]:
        x0, y0, x1, y1 = map(float, (self.left, self.top, self.right, self.bottom))
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


@dataclass(frozen=True)
class Picture:
    name: str
    boxes: tuple[Box, ...]
    size: tuple[int, int] = (48, 64)

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes (0 background, 1 brick, 2 tile) and instance ids (H, W)."""
        classes = np.zeros(self.size, dtype=np.uint8)
        instances = np.zeros(self.size, dtype=np.uint8)
        for number, box in enumerate(self.boxes, 1):
            classes[box.top : box.bottom, box.left : box.right] = box.class_id + 1
            instances[box.top : box.bottom, box.left : box.right] = number
        return classes, instances

    def pixels(self, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).integers(90, 120, (*self.size, 3), dtype=np.uint8)
        classes, _ = self.maps()
        for class_id, name in enumerate(NAMES, 1):
            noise[classes == class_id] = COLORS[name]
        return noise


def make_pictures(count: int) -> list[Picture]:
    """Rectangles do not touch; every fourth picture has none."""
    random = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        boxes = []
        for column in range(0 if number % 4 == 3 else 2):
            left, top = 4 + 30 * column + int(random.integers(8)), int(random.integers(4, 20))
            width, height = random.integers(10, 18, 2).tolist()
            boxes.append(Box((number + column) % 2, left, top, left + width, top + height))
        pictures.append(Picture(f"p{number:02d}.png", tuple(boxes)))
    return pictures


def write_data(folder: Path, form: str, pictures: list[Picture]) -> dict[str, Any]:
    """Write the pictures, and their annotations in a format; returns the entry of DATASETS.CUSTOM."""
    (folder / "images").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.pixels(number)).save(folder / "images" / picture.name)
    entry = FORMATS[form](folder, pictures)
    return {"FORMAT": form, "IMAGES": str(folder / "images"), **entry}


def _coco_lists(pictures: list[Picture]) -> dict[str, list[dict[str, Any]]]:
    return {
        "images": [
            {"id": number, "file_name": picture.name, "height": picture.size[0], "width": picture.size[1]}
            for number, picture in enumerate(pictures, 1)
        ],
        "categories": [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(NAMES)],
    }


def _coco_instance(folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    boxes = [(number, box) for number, picture in enumerate(pictures, 1) for box in picture.boxes]
    annotations = [
        {
            "id": i,
            "image_id": number,
            "category_id": 10 * (box.class_id + 1),
            "segmentation": [[value for corner in box.corners for value in corner]],
        }
        for i, (number, box) in enumerate(boxes, 1)
    ]
    (folder / "coco.json").write_text(json.dumps({**_coco_lists(pictures), "annotations": annotations}))
    return {"ANNOTATIONS": str(folder / "coco.json")}


def _coco_panoptic(folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    lists = _coco_lists(pictures)
    lists["categories"].append({"id": 90, "name": "background", "isthing": 0})
    lists["annotations"] = []
    (folder / "panoptic").mkdir()
    for number, picture in enumerate(pictures, 1):
        _, instances = picture.maps()
        ids = np.where(instances, instances, 200)
        Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=2).astype(np.uint8)).save(
            folder / "panoptic" / picture.name
        )
        segments = [{"id": i, "category_id": 10 * (box.class_id + 1)} for i, box in enumerate(picture.boxes, 1)]
        segments.append({"id": 200, "category_id": 90})
        lists["annotations"].append({"image_id": number, "file_name": picture.name, "segments_info": segments})
    (folder / "panoptic.json").write_text(json.dumps(lists))
    return {"ANNOTATIONS": str(folder / "panoptic.json"), "SEGMENTS": str(folder / "panoptic")}


def _write_pngs(folder: Path, pictures: list[Picture], draw: Callable[[Picture], Image.Image]) -> str:
    folder.mkdir()
    for picture in pictures:
        draw(picture).save(folder / picture.name)
    return str(folder)


def _id_png(folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    return {
        "INSTANCES": _write_pngs(folder / "instances", pictures, lambda p: Image.fromarray(p.maps()[1])),
        "CLASSES": _write_pngs(folder / "classes", pictures, lambda p: Image.fromarray(p.maps()[0])),
        "CLASS_NAMES": ["background", *NAMES],
        "THINGS": list(NAMES),
    }


def _color_png(folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    lines = [f"{name},{','.join(map(str, color))}" for name, color in COLORS.items()]
    (folder / "colors.csv").write_text("\n".join(["name,r,g,b", *lines, "void,9,9,9"]))
    table = np.array(list(COLORS.values()), dtype=np.uint8)

    def draw(picture: Picture) -> Image.Image:
        classes = picture.maps()[0]
        if int(picture.name[1:3]) % 2:
            return Image.fromarray(table[classes])
        in_palette = Image.fromarray(classes)
        in_palette.putpalette(table.tobytes())
        return in_palette

    return {
        "CLASSES": _write_pngs(folder / "classes", pictures, draw),
        "PALETTE": str(folder / "colors.csv"),
    }


def _yolo_seg(folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    (folder / "labels").mkdir()
    for picture in pictures:
        lines = []
        for box in picture.boxes:
            numbers = [f"{x / picture.size[1]:.9f} {y / picture.size[0]:.9f}" for x, y in box.corners]
            lines.append(" ".join([str(box.class_id), *numbers]))
        if lines:
            (folder / "labels" / picture.name).with_suffix(".txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(json.dumps({"path": ".", "train": "images", "val": "images", "names": NAMES}))
    return {"LABELS": str(folder / "labels"), "CLASS_NAMES": list(NAMES)}


def _labelme(folder: Path, pictures: list[Picture]) -> dict[str, Any]:
    (folder / "labelme").mkdir()
    for picture in pictures:
        shapes = [_labelme_shape(box, number) for number, box in enumerate(picture.boxes)]
        content = {
            "version": "5.4.1",
            "imagePath": f"../images/{picture.name}",
            "imageData": None,
            "imageHeight": picture.size[0],
            "imageWidth": picture.size[1],
            "shapes": shapes,
        }
        (folder / "labelme" / picture.name).with_suffix(".json").write_text(json.dumps(content))
    return {"ANNOTATIONS": str(folder / "labelme")}


def _labelme_shape(box: Box, number: int) -> dict[str, Any]:
    """A polygon, or a rectangle, or a painted mask."""
    shape: dict[str, Any] = {"label": NAMES[box.class_id], "group_id": None, "points": box.corners}
    if (box.left + number) % 3 == 0:
        return {**shape, "shape_type": "polygon"}
    shape["points"] = [box.corners[0], box.corners[2]]
    if (box.left + number) % 3 == 1:
        return {**shape, "shape_type": "rectangle"}
    png = io.BytesIO()
    Image.new("1", (box.right - box.left, box.bottom - box.top), 1).save(png, "PNG")
    return {**shape, "shape_type": "mask", "mask": base64.b64encode(png.getvalue()).decode()}


FORMATS: dict[str, Callable[[Path, list[Picture]], dict[str, Any]]] = {
    "coco_instance": _coco_instance,
    "coco_panoptic": _coco_panoptic,
    "id_png": _id_png,
    "color_png": _color_png,
    "yolo_seg": _yolo_seg,
    "labelme": _labelme,
}
