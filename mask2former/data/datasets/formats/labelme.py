"""Labelme: a JSON file an image, with a list of shapes."""

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ..categories import Category
from ..faults import DataError, Fault, Faults
from ..files import IMAGE_SUFFIXES, find_files
from ..json_files import is_number, read_json, shown
from .instances import InstanceFile
from .masks import measure_segmentation
from .source import choose_images, verify_images

__all__ = ["LabelmeSource", "labelme_names"]

_CORNERS_OF_CIRCLE = 64

Shape = dict[str, Any]


@dataclass(frozen=True)
class LabelmeSource:
    """Labelme's files. Shapes of one label and one ``group_id`` are one instance.

    Attributes:
        images: Folder of images; ``imagePath`` must lead into it.
        annotations: Folder of JSON files.
        class_names: Of the classes; None takes the labels that occur.
    """

    images: Path
    annotations: Path
    class_names: tuple[str, ...] | None = None
    panoptic = False

    def files(self) -> list[Path]:
        return [*find_files(self.images, IMAGE_SUFFIXES), *find_files(self.annotations, (".json",))]

    def categories(self) -> tuple[Category, ...]:
        return tuple(Category(number, name, True) for number, name in enumerate(self.names(), 1))

    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return labelme_names(self.annotations) if self.class_names is None else self.class_names

    def segments(self, folder: Path) -> Path:
        raise NotImplementedError

    def convert(self, folder: Path, list_file: Path | None) -> tuple[Category, ...]:
        if self.class_names is None:
            return replace(self, class_names=self.names()).convert(folder, list_file)
        result = InstanceFile(self.categories())
        annotated = self._read_all(result.faults)
        files = {path.relative_to(self.images).as_posix(): path for path in find_files(self.images, IMAGE_SUFFIXES)}
        names = choose_images(files, list_file, self.images)
        if list_file is not None:
            result.faults.keep(set(names))
        told = {fault.image for fault in result.faults.found}
        for name in names:
            if name not in annotated and name not in told:
                message = "is not annotated. Save it in Labelme, without shapes if it shows none, or take it away."
                result.faults.add(files[name], message, image=name)
        wanted = [name for name in names if name in annotated]
        sizes = verify_images([files[name] for name in wanted], wanted, result.faults)
        for number, (name, size) in enumerate(sizes.items(), 1):
            path, content = annotated[name]
            with result.faults.catch(path, image=name):
                _check_size(content, size)
                result.add_image(number, name, size)
                self._add_shapes(path, number, name, content["shapes"], size, result)
        result.write(folder)
        return result.categories

    def _read_all(self, faults: Faults) -> dict[str, tuple[Path, dict[str, Any]]]:
        """By the name of its image every annotation file and its content."""
        found: dict[str, tuple[Path, dict[str, Any]]] = {}
        for path in find_files(self.annotations, (".json",)):
            # What cannot be read is most likely of the image of the same name.
            stem = path.relative_to(self.annotations).with_suffix("").as_posix()
            names = [stem + suffix for suffix in sorted(IMAGE_SUFFIXES)]
            image = next((name for name in names if (self.images / name).is_file()), stem)
            with faults.catch(path, image=image):
                content = _read_labelme(path)
                name = self._image_of(path, content)
                if name in found:
                    raise ValueError(f"is of the image {name}, as {found[name][0]} is. Remove one of them.")
                found[name] = path, content
        return found

    def _image_of(self, path: Path, content: dict[str, Any]) -> str:
        """The path of the image of an annotation file below the folder of images."""
        given = content.get("imagePath")
        if not isinstance(given, str) or not given or "\0" in given:
            raise ValueError(f'has "imagePath" {shown(given)}, expected the path of its image.')
        image = Path(os.path.normpath(path.absolute().parent / PureWindowsPath(given).as_posix()))
        root = self.images.absolute()
        if not image.is_relative_to(root) or PureWindowsPath(given).drive:
            raise ValueError(
                f'has "imagePath" {shown(given)}, which is refused: it leads out of the folder of images {self.images};'
                " if they are in another, name that (IMAGES, or --images)."
            )
        if not image.is_file() or image.suffix.lower() not in IMAGE_SUFFIXES:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f'has "imagePath" {shown(given)}, but {image} is not an image ({suffixes}).')
        return image.relative_to(root).as_posix()

    def _add_shapes(
        self, path: Path, image_id: int, image: str, shapes: Sequence[Any], size: tuple[int, int], result: InstanceFile
    ) -> None:
        groups: dict[Any, list[tuple[str, Shape]]] = {}
        for number, shape in enumerate(shapes, 1):
            place = f"shape {number}"
            with result.faults.catch(path, place, image):
                groups.setdefault(self._check_shape(shape, number), []).append((place, shape))
        for members in groups.values():
            place, first = members[0]
            with result.faults.catch(path, place, image):
                outlines = [_outline(shape, size) for _, shape in members]
                result.add(image_id, self.names().index(first["label"]) + 1, _merge(outlines, size))

    def _check_shape(self, shape: Any, number: int) -> tuple[Any, ...]:
        """What the shapes of one instance have in common."""
        if not isinstance(shape, dict):
            raise ValueError(f"is {shown(shape)}, expected an object.")
        label, group = shape.get("label"), shape.get("group_id")
        if label not in self.names():
            raise ValueError(f"has the label {shown(label)}, expected one of {', '.join(self.names())}.")
        if group is not None and type(group) not in (int, str):
            raise ValueError(f'has "group_id" {shown(group)}, expected a number or null.')
        return (label, number, "alone") if group is None else (label, group, "group")


def labelme_names(folder: Path) -> tuple[str, ...]:
    """The labels of a folder of Labelme's files, sorted; what cannot be read is left to the conversion to tell.

    Raises:
        DataError: There are none.
    """
    names: set[str] = set()
    for path in find_files(folder, (".json",)):
        try:
            shapes = _read_labelme(path)["shapes"]
        except ValueError:
            continue
        labels = (shape.get("label") for shape in shapes if isinstance(shape, dict))
        names.update(label for label in labels if isinstance(label, str) and label)
    if not names:
        raise DataError([Fault(str(folder), "has no JSON file of Labelme with a labelled shape.")])
    return tuple(sorted(names))


def _read_labelme(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError('has no list "shapes", expected a file of Labelme.')
    content.pop("imageData", None)  # a copy of the image, of which memory cannot hold all
    return content


def _check_size(content: dict[str, Any], size: tuple[int, int]) -> None:
    for key, actual in (("imageHeight", size[0]), ("imageWidth", size[1])):
        if content.get(key) is not None and content[key] != actual:
            raise ValueError(
                f'has "{key}" {shown(content[key])}, but the image has {actual} pixels (photographs count as EXIF '
                "turns them). Check that both belong together."
            )


def _outline(shape: Shape, size: tuple[int, int]) -> Any:
    """A polygon [x, y, x, y, ...], or an RLE of a painted mask."""
    kind = shape.get("shape_type", "polygon")
    if not isinstance(kind, str) or kind not in _OUTLINES:
        raise ValueError(f"is a {shown(kind)}, which has no area, expected one of {', '.join(_OUTLINES)}.")
    points = shape.get("points")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points
    ):
        raise ValueError('has wrong "points", expected a list of [x, y] in pixels.')
    needed, draw = _OUTLINES[kind]
    if len(points) < needed or (needed == 2 and len(points) > 2):
        raise ValueError(f"is a {kind} of {len(points)} points, expected {needed}{' or more' * (needed > 2)}.")
    return draw(shape, points, size)


def _polygon(shape: Shape, points: list[list[float]], size: tuple[int, int]) -> list[float]:
    return [value for point in points for value in point]


def _rectangle(shape: Shape, points: list[list[float]], size: tuple[int, int]) -> list[float]:
    (x0, y0), (x1, y1) = points
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _circle(shape: Shape, points: list[list[float]], size: tuple[int, int]) -> list[float]:
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    angles = [2 * math.pi * i / _CORNERS_OF_CIRCLE for i in range(_CORNERS_OF_CIRCLE)]
    return [value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))]


def _painted(shape: Shape, points: list[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of a mask that was painted: a PNG in base64, and the corners of where it lies."""
    left, top = (math.floor(value) for value in points[0])
    small = _decode_png(shape.get("mask"), largest=(size[0] - top, size[1] - left))
    if min(left, top) < 0 or small is None:
        raise ValueError(f"has a mask at {left, top} (x, y) that its image of {size[1]} x {size[0]} does not hold.")
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top : top + small.shape[0], left : left + small.shape[1]] = small
    return _as_text(mask_util.encode(mask))


def _decode_png(text: Any, largest: tuple[int, int]) -> np.ndarray | None:
    """A mask (H, W) bool; None if it is larger than ``largest``, height and width."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            fits = image.height <= largest[0] and image.width <= largest[1]
            return np.asarray(image.convert("L")) != 0 if fits else None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ValueError(f'has a "mask" that is not a PNG in base64 ({error}).') from error


_OUTLINES = {"polygon": (3, _polygon), "rectangle": (2, _rectangle), "circle": (2, _circle), "mask": (2, _painted)}


def _merge(outlines: Sequence[Any], size: tuple[int, int]) -> Any:
    """One segmentation of several outlines."""
    polygons = [outline for outline in outlines if isinstance(outline, list)]
    if polygons:
        measure_segmentation(polygons, size)  # before they are drawn
    if len(polygons) == len(outlines):
        return polygons
    painted = [{**rle, "counts": rle["counts"].encode()} for rle in outlines if isinstance(rle, dict)]
    drawn = mask_util.frPyObjects(polygons, *size) if polygons else []
    return _as_text(mask_util.merge([*painted, *drawn]))


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
