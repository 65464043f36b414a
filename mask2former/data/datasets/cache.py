"""A folder of files that are made once and used by every process and every run."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from iopath.common.file_io import file_lock
from tqdm import tqdm

from mask2former.processors import count_usable_cores

__all__ = ["build_once", "cache_folder", "run_parallel"]

Task = TypeVar("Task")
Result = TypeVar("Result")

# Part of every folder's name: raise it when the files that are written change.
_VERSION = 1


def cache_folder(name: str, settings: Any, files: Iterable[Path]) -> Path:
    """Where what is made of ``files`` is kept; another folder as soon as one of them, or a setting, changes.

    Args:
        name: For people who look into the cache.
        settings: Anything whose ``repr`` says what is made.
        files: What it is made of, recognised by path, size and time.

    Returns:
        A folder below ``$MASK2FORMER_CACHE/datasets`` (default ``~/.cache/mask2former/datasets``).

    Raises:
        OSError: There is no home folder.
    """
    states = [(str(file), (state := _stat(file)).st_size, state.st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps([_VERSION, repr(settings), states]).encode()).hexdigest()
    try:
        root = Path(os.environ.get("MASK2FORMER_CACHE", "~/.cache/mask2former")).expanduser()
    except RuntimeError as error:
        raise OSError("there is no home folder to keep data sets in; let $MASK2FORMER_CACHE name a folder.") from error
    return root / "datasets" / f"{name}-{digest[:12]}"


def _stat(file: Path) -> os.stat_result:
    """Of the file, or of a link to nothing, which is left to the reader to tell of with all other faults."""
    try:
        return file.stat()
    except FileNotFoundError:
        return file.lstat()


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Let ``build`` fill ``folder``, unless it is there: complete or not at all, and by one process at a time.

    Raises:
        OSError: It cannot be written, or is one of ``build``.
    """
    if folder.is_dir():
        return
    try:
        _build_alone(folder, build)
    except OSError as error:
        place = Path(error.filename or folder)  # of a full disk Python names no file
        if error.errno is None or not (place.is_relative_to(folder.parent) or folder.is_relative_to(place)):
            raise
        raise OSError(
            f"{folder}: cannot be written ({error.strerror}); make room there, or let $MASK2FORMER_CACHE name another "
            "folder, in which you may write."
        ) from error


def _build_alone(folder: Path, build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)  # file_lock keeps to itself why it cannot
    with file_lock(str(folder)):
        if folder.is_dir():  # another process was faster
            return
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            build(unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # gone already if all went well


def run_parallel(function: Callable[[Task], Result], tasks: Sequence[Task], description: str) -> list[Result]:
    """``[function(task) for task in tasks]`` in threads, with a progress bar on a terminal."""
    with ThreadPoolExecutor(min(8, count_usable_cores())) as pool:
        return list(tqdm(pool.map(function, tasks), total=len(tasks), desc=description, unit="image", disable=None))
