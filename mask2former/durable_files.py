"""Files that a full disk, a kill or a power cut leaves as they were before, or whole."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["remove_leftovers", "replace_file", "saved_bytes", "sync", "write_file"]

_UNFINISHED = ".part"


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of ``path`` once everything is on the disk.

    If the block or the disk fails, the unfinished file is removed, and ``path`` stays as it was; an ``OSError`` that
    names no file then names ``path``. One process at a time may write a path; what a killed one left is for
    :func:`remove_leftovers`.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a full disk Python says nothing else
            error.filename = str(path)
        raise
    sync(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write one of many files, sooner than :func:`replace_file`: it does not wait for the disk, nor keep an old file.

    Raises:
        OSError: it could not be written, and what was is removed.
    """
    try:
        with open(path, "wb") as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror}); is there space, and may you write there?"
        ) from error


def saved_bytes(save: Callable[[io.BytesIO], object]) -> bytes:
    """What ``save`` writes into a file, for the functions above.

    Of libraries that would write the file themselves: PyTorch turns the error of a full disk into another, and Pillow
    does not say which file has no room.
    """
    file = io.BytesIO()
    save(file)
    return file.getvalue()


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
