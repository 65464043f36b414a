"""Paths that annotation files name: of files below a folder, and nowhere else."""

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..json_files import shown

__all__ = ["path_below", "spellings"]


def path_below(folder: Path, name: Any) -> Path:
    """Join a folder and a path from an annotation file.

    Raises:
        ValueError: It is no relative path, or leads out of the folder.
    """
    # Windows' rules know both separators and drives, wherever this runs.
    parts = PureWindowsPath(name).parts if isinstance(name, str) else ()
    if not parts or "\0" in name:
        raise ValueError(f"names the file {shown(name)}, expected a path below {folder}.")
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in parts:
        raise ValueError(
            f"names the file {shown(name)}, which is refused: it leads out of {folder}. Write paths relative to that "
            "folder, without '..'."
        )
    return folder / name


def spellings(name: str) -> tuple[str, str]:
    """What a relative path from an annotation file may mean, without "." in it: as it is, and as Windows reads it."""
    return PurePosixPath(name).as_posix(), PureWindowsPath(name).as_posix()
