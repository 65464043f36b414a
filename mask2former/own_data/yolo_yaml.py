"""YOLO's ``data.yaml``: where images are, and what classes are called."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mask2former.data.datasets.cache import build_once, cache_folder
from mask2former.data.datasets.faults import DataError, Fault, Faults
from mask2former.data.datasets.files import IMAGE_SUFFIXES, find_files
from mask2former.data.datasets.json_files import read_text, shown
from mask2former.engine.config_files import UniqueKeyLoader

__all__ = ["labels_beside", "read_yolo_yaml"]

Entry = dict[str, Any]


def read_yolo_yaml(path: Path, root: Path | None = None) -> tuple[Entry, Entry | None]:
    """The entries of ``DATASETS.CUSTOM`` for "train" and, if there is one, for "val".

    Args:
        path: The YAML.
        root: Folders outside of it are refused; None allows any, for the YAML is the user's own.

    Raises:
        DataError: It is wrong.
        FileNotFoundError: A folder is not there.
    """
    try:
        content = yaml.load(read_text(path), UniqueKeyLoader)
        if not isinstance(content, dict) or "names" not in content or "train" not in content:
            raise ValueError('has no "names" and "train", expected YOLO\'s description of a data set.')
        names = _names(content["names"])
        splits = [split for split in ("train", "val") if split == "train" or content.get(split)]
        entries = {split: _entry(path, content, split, names, root) for split in splits}
    except (DataError, FileNotFoundError):
        raise
    except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:  # an OSError: a name that is too long
        raise DataError([Fault(str(path), str(error).removeprefix(f"{path}: "))]) from error
    return entries["train"], entries.get("val")


def labels_beside(images: Path) -> Path:
    """Where YOLO has the labels of a folder of images: the last ``images`` of its path becomes ``labels``."""
    parts = list(images.parts)
    if "images" not in parts:
        raise FileNotFoundError(f"{images} is in no folder called images, so there is no labels beside it.")
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _names(names: Any) -> list[str]:
    if isinstance(names, dict) and {str(key) for key in names} == {str(number) for number in range(len(names))}:
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names or not all(type(name) in (str, int) for name in names):
        raise ValueError(
            f'has "names" {shown(names)}, expected a list of class names, or one of 0: name, 1: name, ...; quote no, '
            "yes, on and off."
        )
    return [str(name) for name in names]


def _entry(path: Path, content: dict[Any, Any], split: str, names: list[str], root: Path | None) -> Entry:
    given = content[split]
    parts = given if isinstance(given, list) else [given]
    if not parts or not all(isinstance(part, str) and part and "\0" not in part for part in parts):
        raise ValueError(
            f'has "{split}" {shown(given)}, expected a folder of images, a .txt of their names, or a list of these.'
        )
    found = [_find(path, content, split, part, root) for part in parts]
    common = {"FORMAT": "yolo_seg", "CLASS_NAMES": names}
    if len(found) == 1 and found[0].is_dir():
        return {**common, "IMAGES": str(found[0]), "LABELS": str(labels_beside(found[0]))}
    images = [image for part in found for image in _images_of(part, root)]
    if not images:
        raise ValueError(f'has "{split}" {shown(given)}, where there are no images.')
    folder = Path(os.path.commonpath([image.parent for image in images]))
    if folder == Path(folder.anchor):
        raise ValueError(f'has "{split}" {shown(given)}, whose images have no folder in common; put them into one.')
    # Where each image has a folder "images" of its own, its labels are found from there, else from that of all.
    nested = any("images" in image.parent.relative_to(folder).parts for image in images)
    labels = folder if nested else labels_beside(folder)
    return {**common, "IMAGES": str(folder), "LABELS": str(labels), "LIST": _write_list(path, folder, images)}


def _find(path: Path, content: dict[Any, Any], split: str, given: str, root: Path | None) -> Path:
    """A folder of images, or a file that lists them."""
    start = path.parent / str(content.get("path") or "")
    # Exports are known to write ../train/images for what lies beside the YAML.
    candidates = [start / given, path.parent / given, path.parent / given.removeprefix("../")]
    is_list = given.lower().endswith(".txt")
    found = next((c for c in candidates if (c.is_file() if is_list else c.is_dir())), None)
    if found is None:
        raise FileNotFoundError(
            f'{path}: has "{split}" {given}, but {candidates[0]} is no {"file" if is_list else "folder"}.'
        )
    if found.resolve() == Path(found.resolve().anchor):
        raise ValueError(f'has "{split}" {given}, which is all of the disk, expected a folder of images.')
    return _inside(found, root, f'has "{split}" {given}')


def _images_of(part: Path, root: Path | None) -> list[Path]:
    """The images of a folder, or of a file that has one a line, relative to where it is."""
    if part.is_dir():
        return find_files(part, IMAGE_SUFFIXES)
    images = []
    faults = Faults()
    for number, line in enumerate(read_text(part).splitlines(), 1):
        with faults.catch(part, f"line {number}"):
            if "\0" in line:
                raise ValueError(f"is {shown(line)}, expected the path of an image.")
            image = part.parent / line.strip()
            if line.strip() and (not image.is_file() or image.suffix.lower() not in IMAGE_SUFFIXES):
                raise ValueError(f"names {image}, which is not an image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            if line.strip():
                images.append(_inside(image, root, f"names {shown(line)}"))
    faults.raise_any()
    return images


def _inside(found: Path, root: Path | None, what: str) -> Path:
    """The path without links and "..", if it does not lead out of ``root``."""
    found = found.resolve()
    if root is not None and not found.is_relative_to(root.resolve()):
        raise ValueError(f"{what}, which is refused: it leads out of {root}.")
    return found


def _write_list(path: Path, folder: Path, images: Sequence[Path]) -> str:
    """The file for ``LIST``, in the cache."""
    lines = [image.relative_to(folder).as_posix() for image in dict.fromkeys(images)]
    target = cache_folder(path.stem, ["list of images", str(folder), lines], [path])

    def write(unfinished: Path) -> None:
        (unfinished / "list.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")

    build_once(target, write)
    return str(target / "list.txt")
