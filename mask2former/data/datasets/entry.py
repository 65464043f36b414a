"""Reading an entry of ``DATASETS.CUSTOM`` into the data set that it describes."""

from collections.abc import Mapping
from typing import Any

from .categories import Category
from .coco_own import CocoInstanceDataset, CocoPanopticDataset
from .files import read_lines, resolve
from .id_png import IdPngDataset

__all__ = ["CustomDataset", "parse_entry"]

CustomDataset = CocoInstanceDataset | CocoPanopticDataset | IdPngDataset

# Per format the keys that an entry must have, and those that it may have.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "coco_instance": ({"IMAGES", "ANNOTATIONS"}, set()),
    "coco_panoptic": ({"IMAGES", "ANNOTATIONS", "SEGMENTS"}, set()),
    "id_png": (
        {"IMAGES"},
        {"INSTANCES", "CLASSES", "CLASS_NAMES", "THINGS", "BACKGROUND", "IGNORE_VALUE", "LIST"},
    ),
}

_VOID = "void"  # the name of unlabelled pixels in CLASS_NAMES and BACKGROUND


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
    formats = ", ".join(_KEYS)
    if entry.get("FORMAT") not in _KEYS:
        raise ValueError(f"{where}.FORMAT: is {entry.get('FORMAT')!r}, expected one of {formats}.")
    required, optional = _KEYS[entry["FORMAT"]]
    for key in entry.keys() - required - optional - {"FORMAT"}:
        raise ValueError(
            f"{where}: has the key {key}, which {entry['FORMAT']} does not know. "
            f"Expected {', '.join(sorted(required))} and perhaps {', '.join(sorted(optional)) or 'no other'}."
        )
    for key in sorted(required - entry.keys()):
        raise ValueError(f"{where}: lacks the key {key}, which {entry['FORMAT']} needs.")
    paths = {key: resolve(str(entry[key])) for key in ("IMAGES", "ANNOTATIONS", "SEGMENTS") if key in entry}
    if entry["FORMAT"] == "coco_instance":
        return CocoInstanceDataset(name, paths["IMAGES"], paths["ANNOTATIONS"])
    if entry["FORMAT"] == "coco_panoptic":
        return CocoPanopticDataset(name, paths["IMAGES"], paths["ANNOTATIONS"], paths["SEGMENTS"])
    return _parse_id_png(name, where, entry)


def _parse_id_png(name: str, where: str, entry: Mapping[str, Any]) -> IdPngDataset:
    folders = {key: resolve(str(entry[key])) if key in entry else None for key in ("INSTANCES", "CLASSES", "LIST")}
    ignore_values: tuple[int, ...] = ()
    if folders["CLASSES"]:
        categories, ignore_values = _classes_of_map(where, entry)
    elif folders["INSTANCES"]:
        categories = _classes_of_instances(where, entry)
    else:
        raise ValueError(f"{where}: has neither INSTANCES nor CLASSES, expected a folder of PNGs for one or both.")
    images = resolve(str(entry["IMAGES"]))
    return IdPngDataset(
        name, images, folders["INSTANCES"], folders["CLASSES"], categories, ignore_values, folders["LIST"]
    )


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
    return (thing,) if background == _VOID else (thing, Category(2, background, isthing=False))


def _classes_of_map(where: str, entry: Mapping[str, Any]) -> tuple[tuple[Category, ...], tuple[int, ...]]:
    """The classes and the values of unlabelled pixels."""
    if "BACKGROUND" in entry:
        raise ValueError(f'{where}.BACKGROUND: CLASSES say it themselves; name it in CLASS_NAMES, or "{_VOID}" there.')
    if "CLASS_NAMES" not in entry:
        raise ValueError(
            f"{where}: lacks CLASS_NAMES, which CLASSES need: the names of the values 0, 1, 2, ..., in a list or in a "
            "text file of one name a line."
        )
    names = _class_names(where, entry["CLASS_NAMES"])
    things = [str(thing) for thing in entry.get("THINGS", [])]
    if bool(things) != ("INSTANCES" in entry):
        raise ValueError(
            f"{where}: has {'THINGS but no' if things else 'no THINGS but'} INSTANCES, expected both or neither: "
            "THINGS lists the names of the classes that INSTANCES tell apart."
        )
    for thing in things:
        if thing not in names:
            raise ValueError(f"{where}.THINGS: {thing!r} is not one of CLASS_NAMES ({', '.join(names)}).")
    ignore = entry.get("IGNORE_VALUE", 255 if len(names) <= 255 else 65535)
    if not isinstance(ignore, int) or not 0 <= ignore <= 65535:
        raise ValueError(f"{where}.IGNORE_VALUE: is {ignore!r}, expected a pixel value.")
    if ignore < len(names) and names[ignore] != _VOID:
        raise ValueError(f"{where}.IGNORE_VALUE: is {ignore}, which CLASS_NAMES call {names[ignore]!r}.")
    categories = tuple(
        Category(value + 1, name, isthing=name in things) for value, name in enumerate(names) if name != _VOID
    )
    void = tuple(value for value, name in enumerate(names) if name == _VOID)
    return categories, (*void, ignore)


def _class_names(where: str, names: Any) -> list[str]:
    if isinstance(names, str):
        names = read_lines(resolve(names))
    if not isinstance(names, list | tuple):
        raise ValueError(f"{where}.CLASS_NAMES: is {names!r}, expected a list of names, or a text file of them.")
    names = [str(name) for name in names]
    for name in names:
        if name != _VOID and names.count(name) > 1:
            raise ValueError(f"{where}.CLASS_NAMES: has {name!r} more than once.")
    return names
