"""What the two COCO formats share: the lists of their files, checked entry by entry."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..categories import Category
from ..faults import DataError, Fault, Faults
from ..files import IMAGE_SUFFIXES, find_files
from ..json_files import is_number, read_flag, read_json, shown
from .paths import path_below, spellings
from .source import choose_images, verify_images

__all__ = ["ImageEntries", "entry_id", "read_categories", "read_coco", "read_images", "with_plain_name"]


@dataclass
class ImageEntries:
    """The entries of "images".

    Attributes:
        good: Those to use, by id.
        left_out: Names of the others (bad, or not on the list of those to take) by id. An id that several have is not
            among ``good``: nobody knows whose the annotations are.
    """

    good: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[int | str, str] = field(default_factory=dict)

    def name_of(self, annotation: Any) -> str | None:
        """The name of the image of an annotation, or that there is none."""
        image_id = _image_id(annotation)
        if image_id in self.good:
            return str(self.good[image_id]["file_name"])
        return self.left_out.get(image_id, "unknown image")

    def is_left_out(self, annotation: dict[str, Any]) -> bool:
        """Whether the image of an annotation is there but not used, which has been told already."""
        return _image_id(annotation) in self.left_out


def read_coco(path: Path) -> dict[str, list[Any]]:
    """A COCO file with its three lists.

    Raises:
        FileNotFoundError: Nothing is there.
        DataError: It is no such file.
    """
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError([Fault(str(path), f'has no list "{key}", expected a COCO annotation file.')])
    return content


def read_categories(path: Path, content: dict[str, list[Any]]) -> list[Category]:
    """The classes of a COCO file.

    Raises:
        DataError: One of them is wrong: nothing can be trained then.
    """
    faults = Faults()
    for number, entry in enumerate(content["categories"], 1):
        with faults.catch(path, f"category {entry_id(entry, number)}"):
            _check_category(entry)
    faults.raise_any()
    for category_id, count in Counter(entry["id"] for entry in content["categories"]).items():
        if count > 1:
            faults.add(path, f'id {category_id} occurs more than once in "categories".')
    if not content["categories"]:
        faults.add(path, 'has no "categories", expected one or more classes.')
    faults.raise_any()
    return [Category.from_coco(entry) for entry in content["categories"]]


def read_images(
    path: Path, folder: Path, entries: Sequence[Any], list_file: Path | None, faults: Faults
) -> ImageEntries:
    """Check "images": their form, that the files are there, can be decoded and have the size that is written.

    Args:
        path: The COCO file, for messages.
        folder: Of the images.
        entries: Content of "images".
        list_file: Names the images to take; None takes all.
        faults: Receives what is wrong.
    """
    result = ImageEntries()
    present = {file.relative_to(folder).as_posix() for file in find_files(folder, IMAGE_SUFFIXES)}
    known: dict[int | str, dict[str, Any]] = {}
    names: set[str] = set()
    for number, entry in enumerate(entries, 1):
        entry = with_plain_name(entry, present)
        name = entry.get("file_name") if isinstance(entry, dict) else None
        image_id = entry_id(entry, number)
        try:
            _check_image(entry, present, folder)
            if image_id in known:
                other = known[image_id]["file_name"]
                raise ValueError(f'id {image_id} occurs more than once in "images": {other} has it too.')
            if known and not isinstance(image_id, type(next(iter(known)))):
                raise ValueError(f"has the id {shown(image_id)}, expected numbers or texts, and not both.")
            if name in names:
                raise ValueError(f'{name} occurs more than once in "images".')
        except ValueError as error:
            faults.add(path, str(error), f"image {image_id}", str(name))
            result.left_out.setdefault(image_id, str(name))
            continue
        known[image_id] = entry
        names.add(str(name))
    chosen = set(choose_images([*names, *result.left_out.values()], list_file, path))
    wanted = {image_id: entry for image_id, entry in known.items() if entry["file_name"] in chosen}
    if list_file is not None:
        faults.keep(chosen)
    file_names = [entry["file_name"] for entry in wanted.values()]
    sizes = verify_images([folder / name for name in file_names], file_names, faults)
    for image_id, entry in known.items():
        name = entry["file_name"]
        if name in sizes and sizes[name] != (entry["height"], entry["width"]):
            faults.add(
                path,
                f"says that {name} is {entry['height']} x {entry['width']} (height x width), the file is "
                f"{sizes[name][0]} x {sizes[name][1]}. Check that both belong together (photographs count as EXIF "
                "turns them).",
                f"image {image_id}",
                name,
            )
            del sizes[name]
        if name in sizes and image_id not in result.left_out:
            result.good[image_id] = entry
        else:
            result.left_out[image_id] = name
    return result


def entry_id(entry: Any, number: int) -> Any:
    """The id of an entry, or where it stands in its list if it has none that can be one."""
    value = entry.get("id") if isinstance(entry, dict) else None
    return value if type(value) in (int, str) else f"number {number} in the list"


def with_plain_name(entry: Any, present: Collection[str]) -> Any:
    """An entry that calls its file as it is found among ``present``: a.jpg for ./a.jpg, and b/a.jpg for b\\a.jpg."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        return entry
    plain = next((text for text in spellings(name) if text in present), name)
    return {**entry, "file_name": plain}


def _image_id(annotation: Any) -> Any:
    value = annotation.get("image_id") if isinstance(annotation, dict) else None
    return value if type(value) in (int, str) else None


def _check_category(entry: Any) -> None:
    if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
        raise ValueError(f'is {shown(entry)}, expected an object with a whole number "id" and a text "name".')
    if not -(2**31) <= entry["id"] < 2**31:
        raise ValueError("has an id that does not fit into 32 bits.")
    color = entry.get("color", [0, 0, 0])
    if not isinstance(color, list) or len(color) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in color):
        raise ValueError(f'has "color" {shown(color)}, expected three numbers from 0 to 255.')
    read_flag(entry, "isthing")  # complains


def _check_image(entry: Any, present: set[str], folder: Path) -> None:
    if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
        raise ValueError(f'is {shown(entry)}, expected an object with an "id".')
    for key in ("height", "width"):
        if type(entry.get(key)) is not int or not is_number(entry[key]) or entry[key] < 1:
            raise ValueError(f'has "{key}" {shown(entry.get(key))}, expected a number of pixels.')
    path = path_below(folder, entry.get("file_name"))
    if entry["file_name"] not in present:
        raise ValueError(f"{path}: no such file (of {', '.join(sorted(IMAGE_SUFFIXES))}). Check IMAGES.")
