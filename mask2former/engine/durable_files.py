"""Files that a full disk, a kill or a power cut leaves as they were before, or whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["remove_leftovers", "replace_file", "sync"]

_UNFINISHED = ".part"


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of ``path`` once everything is on the disk.

    If the block or the disk fails, the unfinished file is removed, and ``path`` stays as it was. One process at a time
    may write a path; what a killed one left is for :func:`remove_leftovers`.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Remove what killed processes have not finished of files in ``folder`` whose names fit one of ``patterns``."""
    for pattern in patterns:
        for unfinished in folder.glob(pattern + _UNFINISHED):
            unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; does nothing on Windows, which cannot open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
