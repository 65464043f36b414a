"""Finding the files of a data set, and matching images with masks."""

import os
from collections.abc import Iterable
from pathlib import Path

from mask2former.home import expand_home

from .json_files import read_text

__all__ = ["IMAGE_SUFFIXES", "MASK_SUFFIXES", "find_files", "match_files", "read_lines", "resolve"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MASK_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff"})


def resolve(path: str) -> Path:
    """A path of a configuration: relative ones start at ``$DETECTRON2_DATASETS`` (default ``datasets``)."""
    return expand_home(os.environ.get("DETECTRON2_DATASETS", "datasets")) / expand_home(path)


def find_files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files with one of ``suffixes`` in ``folder`` and below, sorted; hidden ones do not count.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. Relative paths start at $DETECTRON2_DATASETS (default ./datasets)."
        )
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in folders if not name.startswith((".", "__MACOSX")) and not _leads_back(Path(parent, name))
        ]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it is in, which would be walked through again and again."""
    return folder.is_symlink() and any(parent.samefile(folder) for parent in folder.absolute().parents)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without those that are empty and without space around them.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is not text in UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, but an entry of DATASETS.CUSTOM names it.")
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def match_files(images: Path, masks: list[Path]) -> list[tuple[Path, ...]]:
    """Match every image with the file of the same name (but for the suffix) in each folder of masks.

    Args:
        images: Folder of images.
        masks: Folders of masks.

    Returns:
        Per image its path and those of its masks, sorted.

    Raises:
        FileNotFoundError: A folder or a mask is missing.
        ValueError: There are no images, or two of one name.
    """
    by_name = _by_name(images, IMAGE_SUFFIXES)
    if not by_name:
        raise ValueError(f"{images}: has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    columns = [_by_name(folder, MASK_SUFFIXES) for folder in masks]
    for folder, column in zip(masks, columns, strict=True):
        missing = [name for name in by_name if name not in column]
        if missing:
            raise FileNotFoundError(
                f"{by_name[missing[0]]}: has no mask {folder / missing[0]}.png ({len(missing)} of {len(by_name)} "
                "images have none). Add it (all zeros if nothing is there)."
            )
    return [(image, *(column[name] for column in columns)) for name, image in by_name.items()]


def _by_name(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in find_files(folder, suffixes):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{file}: has the same name as {files[name]}. Remove or rename one of them.")
        files[name] = file
    return files
