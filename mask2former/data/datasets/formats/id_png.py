"""Images, and PNGs whose pixels are ids of instances, ids of classes, or colours that stand for classes."""

import logging
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mask2former.image_io import read_label_image, verify_image

from ...panoptic_png import check_label_size, write_panoptic_png
from ..categories import Category, panoptic_order
from ..derived import instance_annotations, write_semantic_png
from ..faults import DataError, Fault, Faults
from ..files import IMAGE_SUFFIXES, MASK_SUFFIXES, find_files
from ..segments import VOID, split_segments
from .palette import Palette
from .panoptic import PanopticImage, convert_images, write_panoptic
from .source import choose_images

__all__ = ["IdPngSource"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdPngSource:
    """A folder of images, and folders of PNGs of the same names.

    A segment is all pixels of one class and, if that is a thing, of one instance id: ids may restart with every class.
    Pixels of a thing without instance id are a crowd.

    Attributes:
        images: Folder of images.
        instances: Folder of PNGs of instance ids, 0 for none; or None.
        classes: Folder of PNGs of class values; or None, then instances are of the first category, and all else is of
            the second if there is one.
        class_list: The classes; a category's id is its value in the PNGs of classes plus 1.
        ignore_values: Values of unlabelled pixels in ``classes``.
        palette: If given, the PNGs of classes are in these colours, and a colour's place there is its value.
    """

    images: Path
    instances: Path | None
    classes: Path | None
    class_list: tuple[Category, ...]
    ignore_values: tuple[int, ...] = (255,)
    palette: Palette | None = None
    panoptic = True

    def files(self) -> list[Path]:
        folders = [(self.images, IMAGE_SUFFIXES), *((folder, MASK_SUFFIXES) for folder in self._mask_folders())]
        return [file for folder, suffixes in folders for file in find_files(folder, suffixes)]

    def categories(self) -> tuple[Category, ...]:
        return self.class_list

    def segments(self, folder: Path) -> Path:
        return folder / "panoptic"

    def convert(self, folder: Path, list_file: Path | None) -> tuple[Category, ...]:
        (folder / "panoptic").mkdir()
        faults = Faults()
        matched = self._match(list_file, faults)
        tasks = [
            ((number, name, files), files[0], name) for number, (name, files) in enumerate(sorted(matched.items()), 1)
        ]
        converted = convert_images(lambda task: self._convert_image(folder, *task), tasks, faults, "Converting")
        write_panoptic(folder, converted, self.class_list, faults)
        counts = Counter(s["category_id"] for image in converted for s in image.segments["segments_info"])
        summary = ", ".join(f"{category.name} {counts[category.id]}" for category in self.class_list)
        _LOGGER.info(f"{self.images}: {len(converted)} images; segments: {summary}.")
        return self.class_list

    def _mask_folders(self) -> list[Path]:
        return [folder for folder in (self.instances, self.classes) if folder is not None]

    def _match(self, list_file: Path | None, faults: Faults) -> dict[str, tuple[Path, ...]]:
        """By its name the file of every image that is wanted, and those of its masks."""
        images = _by_stem(self.images, IMAGE_SUFFIXES, faults)
        if not images:
            raise DataError([Fault(str(self.images), f"has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")])
        names = {path.relative_to(self.images).as_posix(): stem for stem, path in images.items()}
        chosen = {name: names[name] for name in choose_images(names, list_file, self.images)}
        if list_file is not None:
            faults.keep(chosen)
        columns = [(folder, _by_stem(folder, MASK_SUFFIXES, faults)) for folder in self._mask_folders()]
        if list_file is None:
            for _, column in columns:
                self._add_masks_alone(column, images, faults)
        matched = {}
        for name, stem in chosen.items():
            missing = next((folder for folder, column in columns if stem not in column), None)
            if missing is None:
                matched[name] = (images[stem], *(column[stem] for _, column in columns))
            else:
                faults.add(
                    images[stem],
                    f"has no mask {missing / stem}.png. Add it (all zeros if nothing is there), or name the images to "
                    "take by LIST.",
                    image=name,
                )
        return matched

    def _add_masks_alone(self, masks: dict[str, Path], images: Container[str], faults: Faults) -> None:
        """Note masks without an image; the images themselves may lie in the folder too."""
        for stem, path in masks.items():
            if stem not in images and not path.is_relative_to(self.images):
                faults.add(path, f"has no image in {self.images}. Add it, or remove the file.", image=stem)

    def _convert_image(self, folder: Path, number: int, file_name: str, files: tuple[Path, ...]) -> PanopticImage:
        """Write the PNGs of one image, whose file is the first of ``files`` and whose masks are the others."""
        image, *masks = files
        height, width = verify_image(image)
        faults = Faults()
        instances, classes = np.zeros((height, width), dtype=np.int64), np.zeros((height, width), dtype=np.int64)
        if self.instances:
            with faults.catch(masks[0], image=file_name):
                instances = read_label_image(masks[0])
                check_label_size(masks[0], instances, (height, width))
        if self.classes is None:
            classes = np.where(instances > 0, 0, 1 if len(self.class_list) > 1 else VOID)
        else:
            with faults.catch(masks[-1], image=file_name):
                classes = self._read_classes(masks[-1], (height, width))
        faults.raise_any()
        dataset_ids = dict(enumerate(category.id for category in panoptic_order(self.class_list)))
        num_things = sum(category.isthing for category in self.class_list)
        numbers, segments = split_segments(classes, instances, num_things)
        png = f"{number:06d}_{image.stem}.png"  # the number, since folders may repeat names
        write_panoptic_png(folder / "panoptic" / png, numbers)
        write_semantic_png(folder / "semantic" / png, numbers, segments, len(self.class_list))
        in_dataset_ids = [{**s, "category_id": dataset_ids[s["category_id"]]} for s in segments]
        return PanopticImage(
            image={"id": number, "file_name": file_name, "height": height, "width": width},
            segments={"image_id": number, "file_name": png, "segments_info": in_dataset_ids},
            instances=instance_annotations(number, numbers, segments, dataset_ids),
        )

    def _read_classes(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Contiguous classes (H, W); -1 is void."""
        values = self.palette.read(path) if self.palette else read_label_image(path)
        check_label_size(path, values, size)
        unknown = -2
        largest = max([category.id - 1 for category in self.class_list] + list(self.ignore_values))
        lookup = np.full(largest + 2, unknown)
        lookup[list(self.ignore_values)] = VOID
        for contiguous, category in enumerate(panoptic_order(self.class_list)):
            lookup[category.id - 1] = contiguous
        classes = lookup[values.clip(max=largest + 1)]
        if (classes == unknown).any():
            allowed = sorted({category.id - 1 for category in self.class_list} | set(self.ignore_values))
            raise ValueError(
                f"{path}: has class value {values[classes == unknown].max()}, expected one of {allowed}: the places in "
                "CLASS_NAMES, counted from 0, and IGNORE_VALUE. Complete CLASS_NAMES, or correct the file."
            )
        return classes


def _by_stem(folder: Path, suffixes: Iterable[str], faults: Faults) -> dict[str, Path]:
    """The files of a folder by their path without suffix, of which each may occur once."""
    files: dict[str, Path] = {}
    for file in find_files(folder, suffixes):
        name = file.relative_to(folder)
        stem = name.with_suffix("").as_posix()
        if stem in files:
            message = f"has the same name as {files[stem]}. Remove or rename one of them."
            faults.add(file, message, image=name.as_posix())
        files.setdefault(stem, file)
    return files
