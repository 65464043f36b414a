"""YOLO's ``data.yaml``: where images are, and what classes are called."""

from pathlib import Path
from typing import Any

import yaml

from mask2former.data.datasets.formats.faults import DataError, Fault
from mask2former.data.datasets.formats.json_files import read_text, shown

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
        content = yaml.safe_load(read_text(path))
        if not isinstance(content, dict) or "names" not in content or "train" not in content:
            raise ValueError('has no "names" and "train", expected YOLO\'s description of a data set.')
        names = _names(content["names"])
        entries = {split: _entry(path, content, split, names, root) for split in ("train", "val") if content.get(split)}
    except (ValueError, RecursionError, yaml.YAMLError) as error:
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
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise ValueError(f'has "names" {shown(names)}, expected a list of class names, or one of 0: name, 1: name, ...')
    return [str(name) for name in names]


def _entry(path: Path, content: dict[Any, Any], split: str, names: list[str], root: Path | None) -> Entry:
    given = content[split]
    if not isinstance(given, str):
        raise ValueError(f'has "{split}" {shown(given)}, expected one folder of images.')
    start = path.parent / str(content.get("path") or "")
    # Exports are known to write ../train/images for what lies beside the YAML.
    candidates = [start / given, path.parent / given, path.parent / given.removeprefix("../")]
    images = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if images is None:
        raise FileNotFoundError(f'{path}: has "{split}" {given}, but {candidates[0]} is no folder.')
    images = images.resolve()
    if root is not None and not images.is_relative_to(root.resolve()):
        raise ValueError(f'has "{split}" {given}, which is refused: it leads out of {root}.')
    labels = labels_beside(images)
    return {"FORMAT": "yolo_seg", "IMAGES": str(images), "LABELS": str(labels), "CLASS_NAMES": names}
