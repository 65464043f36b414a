"""Reading an entry of ``DATASETS.CUSTOM`` into the data set that it describes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .categories import Category
from .files import read_lines, resolve
from .formats.coco_instances import CocoInstanceSource
from .formats.coco_panoptic import CocoPanopticSource
from .formats.id_png import IdPngSource
from .formats.labelme import LabelmeSource
from .formats.palette import VOID, read_palette
from .formats.source import Source
from .formats.yolo import YoloSource
from .own import CustomDataset

__all__ = ["FORMATS", "parse_entry"]

# Per format the keys that an entry must have, and those that it may have beside LIST and SKIP_BAD.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "coco_instance": ({"IMAGES", "ANNOTATIONS"}, set()),
    "coco_panoptic": ({"IMAGES", "ANNOTATIONS", "SEGMENTS"}, set()),
    "id_png": ({"IMAGES"}, {"INSTANCES", "CLASSES", "CLASS_NAMES", "THINGS", "BACKGROUND", "IGNORE_VALUE"}),
    "color_png": ({"IMAGES", "CLASSES", "PALETTE"}, {"INSTANCES", "THINGS"}),
    "yolo_seg": ({"IMAGES", "LABELS", "CLASS_NAMES"}, set()),
    "labelme": ({"IMAGES", "ANNOTATIONS"}, {"CLASS_NAMES"}),
}
_ALWAYS = {"LIST", "SKIP_BAD"}
# What FORMAT may be.
FORMATS = tuple(_KEYS)


def parse_entry(name: str, entry: Any) -> CustomDataset:
    """Check an entry and resolve its paths; only a file of class names is read.

    Args:
        name: Of the data set.
        entry: What the configuration has below ``DATASETS.CUSTOM.<name>``.

    Raises:
        ValueError: A key is missing, unknown or has a wrong value.
        FileNotFoundError: The file of class names does not exist.
    """
    where = f"DATASETS.CUSTOM.{name}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: is {entry!r}, expected keys such as FORMAT and IMAGES below it.")
    if entry.get("FORMAT") not in FORMATS:
        raise ValueError(f"{where}.FORMAT: is {entry.get('FORMAT')!r}, expected one of {', '.join(FORMATS)}.")
    required, optional = _KEYS[entry["FORMAT"]]
    for key in entry.keys() - required - optional - _ALWAYS - {"FORMAT"}:
        raise ValueError(
            f"{where}: has the key {key}, which {entry['FORMAT']} does not know. "
            f"Expected {', '.join(sorted(required))} and perhaps {', '.join(sorted(optional | _ALWAYS))}."
        )
    for key in sorted(required - entry.keys()):
        raise ValueError(f"{where}: lacks the key {key}, which {entry['FORMAT']} needs.")
    skip_bad = entry.get("SKIP_BAD", False)
    if not isinstance(skip_bad, bool):
        raise ValueError(f"{where}.SKIP_BAD: is {skip_bad!r}, expected True or False.")
    return CustomDataset(name, _parse_source(where, entry), _path(entry, "LIST"), skip_bad)


def _parse_source(where: str, entry: Mapping[str, Any]) -> Source:
    images = resolve(str(entry["IMAGES"]))
    paths = {key: resolve(str(entry[key])) for key in ("ANNOTATIONS", "SEGMENTS", "LABELS") if key in entry}
    if entry["FORMAT"] == "coco_instance":
        return CocoInstanceSource(images, paths["ANNOTATIONS"])
    if entry["FORMAT"] == "coco_panoptic":
        return CocoPanopticSource(images, paths["ANNOTATIONS"], paths["SEGMENTS"])
    if entry["FORMAT"] == "yolo_seg":
        return YoloSource(images, paths["LABELS"], tuple(_class_names(where, entry["CLASS_NAMES"])))
    if entry["FORMAT"] == "labelme":
        given = _class_names(where, entry["CLASS_NAMES"]) if "CLASS_NAMES" in entry else None
        return LabelmeSource(images, paths["ANNOTATIONS"], tuple(given) if given else None)
    return _parse_color_png(where, entry) if entry["FORMAT"] == "color_png" else _parse_id_png(where, entry)


def _path(entry: Mapping[str, Any], key: str) -> Path | None:
    return resolve(str(entry[key])) if key in entry else None


def _parse_id_png(where: str, entry: Mapping[str, Any]) -> IdPngSource:
    instances, classes = _path(entry, "INSTANCES"), _path(entry, "CLASSES")
    ignore_values: tuple[int, ...] = ()
    if classes:
        categories, ignore_values = _classes_of_map(where, entry)
    elif instances:
        categories = _classes_of_instances(where, entry)
    else:
        raise ValueError(f"{where}: has neither INSTANCES nor CLASSES, expected a folder of PNGs for one or both.")
    return IdPngSource(resolve(str(entry["IMAGES"])), instances, classes, categories, ignore_values)


def _parse_color_png(where: str, entry: Mapping[str, Any]) -> IdPngSource:
    palette = read_palette(resolve(str(entry["PALETTE"])))
    categories = _categories_of(palette.names, _things(where, entry, palette.names), palette.colors)
    void = tuple(value for value, name in enumerate(palette.names) if name == VOID)
    images, classes = resolve(str(entry["IMAGES"])), resolve(str(entry["CLASSES"]))
    return IdPngSource(images, _path(entry, "INSTANCES"), classes, categories, void, palette)


def _classes_of_instances(where: str, entry: Mapping[str, Any]) -> tuple[Category, ...]:
    """One thing, and the background as stuff unless it is void."""
    for key in ("THINGS", "IGNORE_VALUE"):
        if key in entry:
            raise ValueError(f"{where}.{key}: says something about CLASSES, which is not given.")
    names = _class_names(where, entry.get("CLASS_NAMES", ["object"]))
    if len(names) != 1:
        raise ValueError(
            f"{where}.CLASS_NAMES: has {len(names)} names, expected one: without CLASSES, instances have one class."
        )
    background = str(entry.get("BACKGROUND", "background"))
    thing = Category(1, names[0], isthing=True)
    return (thing,) if background == VOID else (thing, Category(2, background, isthing=False))


def _classes_of_map(where: str, entry: Mapping[str, Any]) -> tuple[tuple[Category, ...], tuple[int, ...]]:
    """The classes and the values of unlabelled pixels."""
    if "BACKGROUND" in entry:
        raise ValueError(f'{where}.BACKGROUND: CLASSES say it themselves; name it in CLASS_NAMES, or "{VOID}" there.')
    if "CLASS_NAMES" not in entry:
        raise ValueError(
            f"{where}: lacks CLASS_NAMES, which CLASSES need: the names of the values 0, 1, 2, ..., in a list or in a "
            "text file of one name a line."
        )
    names = _class_names(where, entry["CLASS_NAMES"])
    things = _things(where, entry, names)
    ignore = entry.get("IGNORE_VALUE", 255 if len(names) <= 255 else 65535)
    if not isinstance(ignore, int) or not 0 <= ignore <= 65535:
        raise ValueError(f"{where}.IGNORE_VALUE: is {ignore!r}, expected a pixel value.")
    if ignore < len(names) and names[ignore] != VOID:
        raise ValueError(f"{where}.IGNORE_VALUE: is {ignore}, which CLASS_NAMES call {names[ignore]!r}.")
    void = tuple(value for value, name in enumerate(names) if name == VOID)
    return _categories_of(names, things), (*void, ignore)


def _things(where: str, entry: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    given = entry.get("THINGS", [])
    if not isinstance(given, list | tuple):
        raise ValueError(f"{where}.THINGS: is {given!r}, expected a list of names.")
    things = [str(thing) for thing in given]
    if bool(things) != ("INSTANCES" in entry):
        raise ValueError(
            f"{where}: has {'THINGS but no' if things else 'no THINGS but'} INSTANCES, expected both or neither: "
            "THINGS lists the names of the classes that INSTANCES tell apart."
        )
    for thing in things:
        if thing not in names:
            raise ValueError(f"{where}.THINGS: {thing!r} is not one of CLASS_NAMES ({', '.join(names)}).")
    return things


def _categories_of(
    names: Sequence[str], things: Sequence[str], colors: Sequence[tuple[int, int, int]] | None = None
) -> tuple[Category, ...]:
    """The classes of the values 0, 1, 2, ... of a map."""
    return tuple(
        Category(value + 1, name, isthing=name in things, color=colors[value] if colors else None)
        for value, name in enumerate(names)
        if name != VOID
    )


def _class_names(where: str, names: Any) -> list[str]:
    if isinstance(names, str):
        names = read_lines(resolve(names))
    if not isinstance(names, list | tuple):
        raise ValueError(f"{where}.CLASS_NAMES: is {names!r}, expected a list of names, or a text file of them.")
    if not names:
        raise ValueError(f"{where}.CLASS_NAMES: is empty, expected the names of the classes.")
    names = [str(name) for name in names]
    for name in names:
        if name != VOID and names.count(name) > 1:
            raise ValueError(f"{where}.CLASS_NAMES: has {name!r} more than once.")
    return names
