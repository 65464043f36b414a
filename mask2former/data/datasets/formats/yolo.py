"""YOLO's segmentation labels: a text file an image, a line an instance."""

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..categories import Category
from ..faults import DataError, Fault, Faults
from ..files import IMAGE_SUFFIXES, find_files
from ..json_files import read_text
from .instances import InstanceFile
from .source import choose_images, verify_images

__all__ = ["YoloSource"]

_OVER = 0.01  # how far rounding may lead out of the picture, which is 1 wide and high


@dataclass(frozen=True)
class YoloSource:
    """YOLO's segmentation labels: ``class x y x y ...`` a line, coordinates from 0 to 1.

    The label file of ``a/b.jpg`` is ``a/b.txt``, and where both are below one folder that of ``a/images/b.jpg`` is
    ``a/labels/b.txt``; an image without one has no objects.

    Attributes:
        images: Folder of images.
        labels: Folder of text files.
        names: Of the classes 0, 1, 2, ...
    """

    images: Path
    labels: Path
    names: tuple[str, ...]
    panoptic = False

    def files(self) -> list[Path]:
        return [*find_files(self.images, IMAGE_SUFFIXES), *self._label_files()]

    def categories(self) -> tuple[Category, ...]:
        return tuple(Category(number, name, True) for number, name in enumerate(self.names, 1))

    def segments(self, folder: Path) -> Path:
        raise NotImplementedError

    def convert(self, folder: Path, list_file: Path | None) -> tuple[Category, ...]:
        result = InstanceFile(self.categories())
        faults = result.faults
        files = {path.relative_to(self.images).as_posix(): path for path in find_files(self.images, IMAGE_SUFFIXES)}
        if not files:
            raise DataError([Fault(str(self.images), f"has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")])
        names = choose_images(files, list_file, self.images)
        labels = {_stem(path.relative_to(self.labels)): path for path in self._label_files()}
        stems = {self._label_stem(name) for name in files}
        if not stems & labels.keys():
            message = f"none of its {len(labels)} text files is named like an image of {self.images}."
            raise DataError([Fault(str(self.labels), message)])
        if list_file is None:
            for stem in sorted(labels.keys() - stems):
                faults.add(labels[stem], f"has no image in {self.images}. Add it, or remove the file.", image=stem)
        names = self._without_twins(names, files, labels, faults)
        for number, (name, size) in enumerate(verify_images([files[name] for name in names], names, faults).items(), 1):
            result.add_image(number, name, size)
            if (stem := self._label_stem(name)) in labels:
                self._add_labels(labels[stem], number, name, size, result)
        result.write(folder)
        return result.categories

    def _without_twins(
        self, names: Iterable[str], files: dict[str, Path], labels: Container[str], faults: Faults
    ) -> list[str]:
        """The images but those whose labels are another's already, as a mask's that lies beside its photograph."""
        owners: dict[str, str] = {}
        kept = []
        for name in names:
            stem = self._label_stem(name)
            owner = owners.setdefault(stem, name)
            if owner == name or stem not in labels:
                kept.append(name)
            else:
                faults.add(
                    files[name], f"has the labels of {files[owner]} too. Remove or rename one of them.", image=name
                )
        return kept

    def _label_stem(self, image: str) -> str:
        """The path of an image's labels below ``labels``, without suffix."""
        parts = list(Path(image).with_suffix("").parts)
        if self.labels == self.images and "images" in parts[:-1]:
            parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        return "/".join(parts)

    def _label_files(self) -> list[Path]:
        # LabelImg puts the names of the classes among the labels.
        return [path for path in find_files(self.labels, (".txt",)) if path.name != "classes.txt"]

    def _add_labels(self, path: Path, image_id: int, name: str, size: tuple[int, int], result: InstanceFile) -> None:
        for number, line in _lines(path, name, result.faults):
            with result.faults.catch(path, f"line {number}", name):
                class_id, polygon = self._parse(line, size)
                result.add(image_id, class_id + 1, [polygon])

    def _parse(self, line: str, size: tuple[int, int]) -> tuple[int, list[float]]:
        """The class of a line, and its polygon [x, y, x, y, ...] in pixels."""
        first, *rest = line.split()
        if not first.isascii() or not first.isdigit() or len(first) > 9:
            raise ValueError(f"begins with {first[:40]!r}, expected the number of a class.")
        if int(first) >= len(self.names):
            names = ", ".join(self.names[:9])
            raise ValueError(f"has the class {int(first)}, expected 0 to {len(self.names) - 1} ({names}).")
        if len(rest) == 4:
            raise ValueError("has a box, expected a polygon: boxes alone cannot train masks.")
        if len(rest) < 6 or len(rest) % 2:
            raise ValueError(f"has {len(rest)} coordinates, expected x and y of three points or more.")
        values = [_coordinate(text) for text in rest]
        extents = (size[1], size[0])
        return int(first), [value * extents[i % 2] for i, value in enumerate(values)]


def _coordinate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"has the coordinate {text[:40]!r}, expected a number.") from None
    if math.isnan(value) or not -_OVER <= value <= 1 + _OVER:
        raise ValueError(f"has the coordinate {value:g}, expected 0 to 1, a share of the image's width or height.")
    return min(max(value, 0.0), 1.0)


def _lines(path: Path, image: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = read_text(path)
    except DataError as error:
        faults.add(path, str(error), image=image)
        return
    yield from ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()
