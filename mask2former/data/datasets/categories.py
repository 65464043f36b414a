"""Classes of a data set, and the metadata that Detectron2's evaluators and visualisers read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.utils.colormap import colormap

__all__ = ["Category", "panoptic_metadata", "panoptic_order", "thing_metadata"]


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        id: As the annotation files write it.
        name: For people.
        isthing: Whether it has instances.
        color: RGB, 0 to 255; None picks one.
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] | None = None

    @classmethod
    def from_coco(cls, entry: dict[str, Any]) -> "Category":
        """Read an entry of a COCO file's "categories"; without "isthing", or with null there, it is a thing."""
        color = tuple(entry["color"]) if "color" in entry else None
        return cls(entry["id"], entry["name"], entry.get("isthing") in (None, 1), color)

    def to_coco(self) -> dict[str, Any]:
        """The entry of a COCO file's "categories"."""
        return {"id": self.id, "name": self.name, "isthing": int(self.isthing), "supercategory": self.name}


def thing_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of an instance data set: contiguous ids in the order of the categories' own."""
    things = [category for category in panoptic_order(categories) if category.isthing]
    return {
        "thing_classes": [category.name for category in things],
        "thing_colors": _colors(things),
        "thing_dataset_id_to_contiguous_id": {category.id: i for i, category in enumerate(things)},
    }


def panoptic_metadata(categories: Sequence[Category], things_first: bool = True) -> dict[str, Any]:
    """Metadata of a panoptic data set, as the official release writes it.

    The lists of stuff hold all classes, so that a semantic evaluation over everything can use them; those of things
    hold the things alone.

    Args:
        categories: The classes.
        things_first: Give the first contiguous ids to the things, as for COCO; else they follow the categories' own.
    """
    ordered = panoptic_order(categories) if things_first else sorted(categories, key=lambda category: category.id)
    contiguous = {category.id: i for i, category in enumerate(ordered)}
    things = [category for category in ordered if category.isthing]
    return {
        "thing_classes": [category.name for category in things],
        "thing_colors": _colors(things),
        "thing_dataset_id_to_contiguous_id": {category.id: contiguous[category.id] for category in things},
        "stuff_classes": [category.name for category in ordered],
        "stuff_colors": _colors(ordered),
        "stuff_dataset_id_to_contiguous_id": contiguous,
    }


def panoptic_order(categories: Sequence[Category]) -> list[Category]:
    """The categories by contiguous id: the things and then the stuff, each in the order of their own ids."""
    return sorted(categories, key=lambda category: (not category.isthing, category.id))


def _colors(categories: Sequence[Category]) -> list[list[int]]:
    palette = colormap(rgb=True).astype(int).tolist()
    return [
        list(category.color) if category.color else palette[i % len(palette)] for i, category in enumerate(categories)
    ]
