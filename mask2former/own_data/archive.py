"""Unpacking a zip of somebody else's making."""

import shutil
import stat
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from mask2former.data.datasets.cache import build_once, cache_folder
from mask2former.data.datasets.faults import DataError, Faults
from mask2former.data.datasets.formats.paths import path_below

__all__ = ["unpack"]

_SAYS_UTF8 = 0x800  # a flag of a member
_LARGEST_RATIO = 1000  # of unpacked to packed: zeros pack so well, pictures and polygons never do


def unpack(archive: Path) -> Path:
    """Unpack a zip once, into the cache, and return the folder that has its content.

    Raises:
        DataError: It is damaged, or has something that no data set needs: a path out of its folder, a link, a file that
            unpacks to an enormous one.
    """
    target = cache_folder(f"{archive.stem}.zip", "unpacked", [archive])
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                member.filename = _name_of(member)
            members = [member for member in opened.infolist() if not _is_rubbish(member.filename)]
            _check(archive, members, target)
            build_once(target, lambda folder: _extract(opened, members, folder))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        # Encrypted is a RuntimeError, an unknown compression a NotImplementedError.
        faults = Faults()
        faults.add(archive, f"cannot be unpacked ({error}). Pack it again, or unpack it and give the folder.")
        raise DataError(faults.found) from error
    entries = [entry for entry in target.iterdir() if not entry.name.startswith(".")]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else target


def _check(archive: Path, members: list[zipfile.ZipInfo], target: Path) -> None:
    faults = Faults()
    for member in members:
        with faults.catch(archive, member.filename):
            path_below(target, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError("is a link, which is refused.")
            if member.file_size > 1_000_000 and member.file_size > _LARGEST_RATIO * max(member.compress_size, 1):
                raise ValueError(f"unpacks from {member.compress_size} to {member.file_size} bytes, which is refused.")
    free = shutil.disk_usage(_existing(target)).free
    needed = sum(member.file_size for member in members)
    if needed > 0.9 * free and not target.is_dir():
        faults.add(archive, f"needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free for {target}.")
    faults.raise_any()


def _extract(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    for member in members:
        path = path_below(folder, member.filename)
        if member.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file)  # reads no more than file_size, and checks the CRC


def _name_of(member: zipfile.ZipInfo) -> str:
    """The name that was packed. Not all who write UTF-8 say so, and Python then takes it for DOS' code page."""
    name = member.filename
    if not member.flag_bits & _SAYS_UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")  # as old programs wrote on Windows


def _is_rubbish(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.endswith((".DS_Store", "Thumbs.db"))


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
