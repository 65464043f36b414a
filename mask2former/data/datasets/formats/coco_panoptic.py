"""COCO panoptic: a JSON file, and a folder of PNGs of segment ids."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...panoptic_png import read_panoptic_png
from ..categories import Category, panoptic_order
from ..derived import instance_annotations, write_semantic_png
from ..faults import DataError, Faults
from ..files import IMAGE_SUFFIXES, find_files
from ..json_files import read_flag, shown
from ..segments import measure_segments
from .coco_entries import ImageEntries, read_categories, read_coco, read_images, with_plain_name
from .panoptic import PanopticImage, convert_images, write_panoptic
from .paths import path_below

__all__ = ["CocoPanopticSource"]


@dataclass(frozen=True)
class CocoPanopticSource:
    """COCO panoptic.

    Attributes:
        images: Folder of images.
        annotations: The JSON file.
        segment_pngs: Folder of PNGs.
    """

    images: Path
    annotations: Path
    segment_pngs: Path
    panoptic = True

    def files(self) -> list[Path]:
        if not self.annotations.is_file():
            read_coco(self.annotations)  # says so
        folders = (self.images, IMAGE_SUFFIXES), (self.segment_pngs, (".png",))
        return [self.annotations, *(file for folder, suffixes in folders for file in find_files(folder, suffixes))]

    def categories(self) -> tuple[Category, ...]:
        return tuple(read_categories(self.annotations, read_coco(self.annotations)))

    def segments(self, folder: Path) -> Path:
        return self.segment_pngs

    def convert(self, folder: Path, list_file: Path | None) -> tuple[Category, ...]:
        content = read_coco(self.annotations)
        categories = tuple(read_categories(self.annotations, content))
        faults = Faults()
        images = read_images(self.annotations, self.images, content["images"], list_file, faults)
        annotations = self._match(content["annotations"], images, faults)
        converter = _Converter(self, folder, categories)
        tasks = []
        for image_id, annotation in annotations.items():
            image = images.good[image_id]
            tasks.append(((image, annotation), self.segment_pngs / annotation["file_name"], image["file_name"]))
        converted = convert_images(lambda task: converter.convert(*task), tasks, faults, "Converting")
        write_panoptic(folder, converted, categories, faults)
        return categories

    def _match(self, annotations: list[Any], images: ImageEntries, faults: Faults) -> dict[int | str, dict[str, Any]]:
        """The annotation of every image, by its id."""
        present = {file.relative_to(self.segment_pngs).as_posix() for file in find_files(self.segment_pngs, (".png",))}
        found: dict[int | str, dict[str, Any]] = {}
        for number, entry in enumerate(annotations, 1):
            annotation = with_plain_name(entry, present)
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            with faults.catch(self.annotations, f"annotation {number}", images.name_of(annotation)):
                if not isinstance(annotation, dict):
                    raise ValueError(f"is {shown(annotation)}, expected an object.")
                if images.is_left_out(annotation):
                    continue
                if type(image_id) not in (int, str) or image_id not in images.good:
                    raise ValueError(f'image_id {shown(image_id)} is annotated but not in "images".')
                if image_id in found:
                    raise ValueError(f'image_id {image_id} occurs more than once in "annotations".')
                path_below(self.segment_pngs, annotation.get("file_name"))
                found[image_id] = annotation
        for image_id, image in images.good.items():
            if image_id not in found:
                faults.add(
                    self.annotations,
                    f'{image["file_name"]} is not annotated. Give it an annotation, whose "segments_info" may be '
                    'empty, or take it out of "images".',
                    f"image {image_id}",
                    image["file_name"],
                )
        return found


class _Converter:
    """Checks single images, and writes what is derived of them."""

    def __init__(self, source: CocoPanopticSource, folder: Path, categories: Sequence[Category]) -> None:
        self.source = source
        self.folder = folder
        self.num_classes = len(categories)
        self.things = {category.id for category in categories if category.isthing}
        self.contiguous = {category.id: i for i, category in enumerate(panoptic_order(categories))}
        self.dataset_ids = {i: category_id for category_id, i in self.contiguous.items()}

    def convert(self, image: dict[str, Any], annotation: dict[str, Any]) -> PanopticImage:
        """One image.

        Raises:
            DataError: Segments are wrong.
            ValueError: The PNG is.
            FileNotFoundError: There is no PNG.
        """
        size = image["height"], image["width"]
        png = annotation["file_name"]
        pixels = read_panoptic_png(self.source.segment_pngs / png, size)
        infos = self._check(image, annotation, set(np.unique(pixels).tolist()) - {0})
        ids = np.array([0] + [info["id"] for info in infos])
        order = np.argsort(ids)
        numbers = order[np.searchsorted(ids, pixels, sorter=order)]
        segments = [
            {
                "id": info["id"],
                "category_id": self.contiguous[info["category_id"]],
                "isthing": info["category_id"] in self.things,
                "iscrowd": int(read_flag(info, "iscrowd")),
                **measures,
            }
            for info, measures in zip(infos, measure_segments(numbers), strict=True)
        ]
        write_semantic_png(self.folder / "semantic" / png, numbers, segments, self.num_classes)
        in_dataset_ids = [{**s, "category_id": self.dataset_ids[s["category_id"]]} for s in segments]
        return PanopticImage(
            image={key: image[key] for key in ("id", "file_name", "height", "width")},
            segments={"image_id": image["id"], "file_name": png, "segments_info": in_dataset_ids},
            instances=instance_annotations(image["id"], numbers, segments, self.dataset_ids),
        )

    def _check(self, image: dict[str, Any], annotation: dict[str, Any], present: Collection[int]) -> list[Any]:
        """The entries of "segments_info", which are those of the PNG, no more and no fewer."""
        faults = Faults()
        name, path = image["file_name"], self.source.annotations
        infos = annotation.get("segments_info")
        place = f"annotation of image {image['id']}"
        if not isinstance(infos, list):
            faults.add(path, f'has "segments_info" {shown(infos)}, expected a list.', place, name)
            raise DataError(faults.found)
        listed: set[int] = set()
        for info in infos:
            with faults.catch(path, place, name):
                self._check_segment(info, listed, present, annotation["file_name"])
        if unlisted := sorted(set(present) - listed):
            more = f" and {len(unlisted) - 1} more" * (len(unlisted) > 1)
            blurred = " So many come of JPEG or of smooth resizing: export the PNGs anew." * (len(unlisted) > 9)
            faults.add(
                self.source.segment_pngs / annotation["file_name"],
                f'has pixels of segment {unlisted[0]}{more}, which "segments_info" of {path.name} does not list.'
                f"{blurred}",
                image=name,
            )
        faults.raise_any()
        return infos

    def _check_segment(self, info: Any, listed: set[int], present: Collection[int], png: str) -> None:
        if not isinstance(info, dict) or type(info.get("id")) is not int:
            raise ValueError(f'has the segment {shown(info)}, expected an object with a whole number "id".')
        segment_id, category_id = info["id"], info.get("category_id")
        repeated = segment_id in listed
        listed.add(segment_id)
        if repeated:
            raise ValueError(f"segment {segment_id} occurs more than once.")
        if type(category_id) is not int or category_id not in self.contiguous:
            raise ValueError(
                f'segment {segment_id} has category_id {shown(category_id)}, which is not in "categories".'
            )
        read_flag(info, "iscrowd")  # complains
        if segment_id not in present:
            raise ValueError(f"segment {segment_id} has no pixel in {png}.")
