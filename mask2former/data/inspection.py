"""What a data set holds: counts, sizes, classes, the fullest image, what is unlabelled."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from tabulate import tabulate

from .annotation_masks import encode_annotation

__all__ = ["ClassCount", "Inspection", "background_classes", "inspect_records"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        name: Of the class.
        isthing: Whether it has instances.
        images: Images that show it.
        segments: Instances of a thing, or images that show stuff; crowds do not count.
        pixels: Pixels of these.
    """

    name: str
    isthing: bool
    images: int
    segments: int
    pixels: int


@dataclass(frozen=True)
class Inspection:
    """Statistics of a data set. Numbers of nothing are 0.

    Attributes:
        images: How many there are.
        empty: Images without any segment, or with none but stuff called background.
        heights: Smallest, median and largest, in pixels.
        widths: The same.
        pixels: Of all images together.
        classes: In the model's order.
        most_segments: Segments to find in the fullest image.
        fullest: Name of that image.
        most_in_area: The largest number of segments in a million pixels of an image.
        object_sizes: Square roots of the areas of things, in pixels: quantiles of 5, 25, 50, 75 and 95 %.
        longest_object: The longer side of the bounding box of a thing, in pixels: the quantile of 95 %.
        crowds: Groups of things that are not told apart.
        void: Share of pixels that are unlabelled, crowds among them. None where background need not be labelled.
    """

    images: int
    empty: int
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    pixels: int
    classes: tuple[ClassCount, ...]
    most_segments: int
    fullest: str
    most_in_area: float
    object_sizes: tuple[float, ...]
    longest_object: float
    crowds: int
    void: float | None

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Inspection":
        """What :meth:`to_json` gave."""
        content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        content["classes"] = tuple(ClassCount(**entry) for entry in content["classes"])
        return cls(**content)

    def rows(self) -> list[tuple[str, str]]:
        """Everything but the classes, as names and values for people."""
        rows = [
            ("images", f"{self.images}, of which {self.empty} show nothing to find"),
            ("height", _range(self.heights)),
            ("width", _range(self.widths)),
            ("most segments in an image", f"{self.most_segments} ({self.fullest})"),
        ]
        if any(self.object_sizes):
            quantiles = ", ".join(f"{size:.0f}" for size in self.object_sizes)
            rows.append(("size of objects, pixels", f"{quantiles} (5, 25, 50, 75, 95 % are smaller; root of the area)"))
        if self.crowds:
            rows.append(("crowds", f"{self.crowds}, ignored in training and evaluation"))
        if self.void is not None:
            rows.append(("unlabelled pixels", f"{self.void:.1%}"))
        return rows

    def class_rows(self) -> list[tuple[str, str, int, int, str]]:
        """Of each class name, kind, images, segments and share of pixels."""
        return [
            (c.name, "thing" if c.isthing else "stuff", c.images, c.segments, f"{c.pixels / max(self.pixels, 1):.2%}")
            for c in self.classes
        ]

    def table(self) -> str:
        """A readable text."""
        head = tabulate(self.rows(), tablefmt="plain")
        columns = ("class", "kind", "images", "segments", "pixels")
        return f"{head}\n\n{tabulate(self.class_rows(), headers=columns, tablefmt='simple', disable_numparse=[4])}"


def background_classes(metadata: Any) -> set[int]:
    """The classes that stand for nothing to find: stuff called background."""
    things = metadata.thing_dataset_id_to_contiguous_id.values()
    return {i for i, name in enumerate(metadata.get("stuff_classes", ())) if name == "background" and i not in things}


def inspect_records(records: Sequence[dict[str, Any]], metadata: Any) -> Inspection:
    """Count what dataset dicts hold.

    Args:
        records: With "height", "width" and "annotations" (masks as polygons or as compressed RLE) or "segments_info"
            with "area" and "bbox".
        metadata: Detectron2's.
    """
    panoptic = any("segments_info" in record for record in records)
    names = metadata.stuff_classes if panoptic else metadata.thing_classes
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    counts = {i: {"images": 0, "segments": 0, "pixels": 0} for i in range(len(names))}
    background = background_classes(metadata)
    per_image, areas, lengths, crowds, labelled, empty = [], [], [], 0, 0, 0
    for record in records:
        segments = [segment for segment in _segments(record) if segment["area"] > 0]
        targets = [segment for segment in segments if not segment.get("iscrowd", 0)]
        crowds += len(segments) - len(targets)
        per_image.append(len(targets))
        empty += all(segment["category_id"] in background for segment in targets)
        labelled += sum(segment["area"] for segment in targets)
        for segment in targets:
            counts[segment["category_id"]]["segments"] += 1
            counts[segment["category_id"]]["pixels"] += segment["area"]
        for category in {segment["category_id"] for segment in targets}:
            counts[category]["images"] += 1
        objects = [segment for segment in targets if segment["category_id"] in things]
        areas += [segment["area"] for segment in objects]
        lengths += [max(segment["bbox"][2:]) for segment in objects]
    sizes = np.array([(record["height"], record["width"]) for record in records], dtype=np.int64).reshape(-1, 2)
    fullest = int(np.argmax(per_image)) if per_image else -1
    pixels = int(sizes.prod(axis=1).sum())
    return Inspection(
        images=len(records),
        empty=empty,
        heights=_spread(sizes[:, 0]),
        widths=_spread(sizes[:, 1]),
        pixels=pixels,
        classes=tuple(ClassCount(name, i in things, **counts[i]) for i, name in enumerate(names)),
        most_segments=per_image[fullest] if per_image else 0,
        fullest=Path(records[fullest]["file_name"]).name if per_image else "",
        most_in_area=max((n / area * 1e6 for n, area in zip(per_image, sizes.prod(axis=1), strict=True)), default=0.0),
        object_sizes=tuple(np.quantile(np.sqrt(areas), _QUANTILES).tolist()) if areas else (0.0,) * len(_QUANTILES),
        longest_object=float(np.quantile(lengths, 0.95)) if lengths else 0.0,
        crowds=crowds,
        void=1 - labelled / pixels if panoptic and pixels else None,
    )


def _segments(record: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if "segments_info" in record:
        yield from record["segments_info"]
        return
    size = record["height"], record["width"]
    for annotation in record["annotations"]:
        rle = encode_annotation(annotation["segmentation"], size)
        yield {**annotation, "area": int(mask_util.area(rle)), "bbox": mask_util.toBbox(rle).tolist()}


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    return (int(values.min()), int(np.median(values)), int(values.max())) if values.size else (0, 0, 0)


def _range(spread: tuple[int, int, int]) -> str:
    low, median, high = spread
    return f"{low}" if low == high else f"{low} to {high}, median {median}"
