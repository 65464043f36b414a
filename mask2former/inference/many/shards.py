"""Very many pictures, divided into parts: files of a folder, of a list or of a COCO JSON, or archives as they are."""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.files import IMAGE_SUFFIXES, find_files
from mask2former.data.datasets.formats.coco_entries import entry_id
from mask2former.data.datasets.formats.paths import path_below
from mask2former.data.datasets.json_files import read_json, read_text, shown
from mask2former.image_io import read_image

__all__ = ["FileShard", "PictureSource", "Shard", "TarShard", "digest_shards", "find_shards"]


@dataclass(frozen=True)
class PictureSource:
    """A picture, not yet read.

    Attributes:
        image_id: Of results: COCO's, its number in the list from 1, or "<archive>/<name>".
        name: Of its file, as results give it.
        path: Of its file, or of the archive that it is in.
        content: Of its file, if it comes from an archive.
    """

    image_id: int | str
    name: str
    path: Path
    content: bytes | None = None

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright.

        Raises:
            FileNotFoundError: Nothing is there.
            ValueError: It cannot be read as a picture.
        """
        return np.ascontiguousarray(read_image(self.path, content=self.content))


@dataclass(frozen=True)
class FileShard:
    """Some files.

    Attributes:
        number: Of the part, from 0.
        files: In order.
    """

    number: int
    files: tuple[PictureSource, ...]

    def pictures(self) -> Iterator[PictureSource]:
        yield from self.files

    def describe(self) -> Iterator[str]:
        """What makes it what it is."""
        return (f"{file.image_id}\t{file.name}" for file in self.files)


@dataclass(frozen=True)
class TarShard:
    """An archive of pictures, compressed or not; other files in it do not count.

    Attributes:
        number: Of the part, from 0.
        archive: The file.
    """

    number: int
    archive: Path

    def pictures(self) -> Iterator[PictureSource]:
        """Read one picture after the other.

        Raises:
            ValueError: The archive is damaged; what was before the damage has been yielded.
        """
        last = "its beginning"
        try:
            with tarfile.open(self.archive) as opened:
                for member in opened:
                    file = opened.extractfile(member) if _is_picture(member) else None
                    if file is not None:
                        name = f"{self.archive.name}/{member.name}"
                        yield PictureSource(name, name, Path(name), file.read())
                    last = member.name
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{self.archive}: is damaged after {last} ({error}); what follows is lost.") from error

    def describe(self) -> Iterator[str]:
        """What makes it what it is."""
        yield f"{self.archive.name}\t{self.archive.stat().st_size}"


Shard = FileShard | TarShard


def find_shards(source: Path, images: Path | None, part_size: int) -> list[Shard]:
    """Find pictures and divide them.

    Args:
        source: A folder, which is searched with all below it, for pictures or for archives (``.tar``, ``.tar.gz``,
            ``.tgz``); a list of files (``.txt``), one a line; a COCO JSON, of which "images" counts; or an archive.
        images: Folder that names in a list or a JSON are relative to; None takes the one that it lies in.
        part_size: Pictures in a part; an archive is a part whatever it holds.

    Raises:
        FileNotFoundError: Something is not there.
        ValueError: It is nothing of these, or has no pictures.
    """
    if part_size < 1:
        raise ValueError(f"--part-size is {part_size}, expected at least 1 picture.")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder.")
    if source.is_dir():
        archives, files = _archives_below(source), find_files(source, IMAGE_SUFFIXES)
        if archives and files:
            raise ValueError(
                f"{source}: has pictures ({files[0].name}, ...) and archives ({archives[0].name}, ...), so it is not "
                "clear which are meant; write those to take into a .txt, one a line."
            )
        names = [file.relative_to(source).as_posix() for file in files]
        listed = [PictureSource(i, name, source / name) for i, name in enumerate(names, 1)]
    elif _is_archive(source):
        archives, listed = [source], []
    elif source.suffix.lower() == ".json":
        archives, listed = [], _from_coco(source, images or source.parent)
    elif source.suffix.lower() == ".txt":
        archives, listed = _from_list(source, images or source.parent)
    else:
        raise ValueError(f"{source}: expected a folder, a list of files (.txt), a COCO JSON, or an archive (.tar).")
    if not archives and not listed:
        raise ValueError(f"{source}: has no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) and no archives (.tar).")
    if archives:
        return [TarShard(number, archive) for number, archive in enumerate(archives)]
    starts = range(0, len(listed), part_size)
    return [FileShard(number, tuple(listed[start : start + part_size])) for number, start in enumerate(starts)]


def digest_shards(shards: Iterable[Shard]) -> str:
    """SHA-256 of what is in which part."""
    digest = hashlib.sha256()
    for shard in shards:
        for line in (f"part {shard.number}", *shard.describe()):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _archives_below(folder: Path) -> list[Path]:
    found = [path for path in find_files(folder, (".tar", ".tgz", ".gz")) if _is_archive(path)]
    _check_names(found)
    return found


def _from_list(path: Path, folder: Path) -> tuple[list[Path], list[PictureSource]]:
    """Archives and pictures, of which a list has the ones or the others."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    archives = [folder / name for name in names if _is_archive(Path(name))]
    if archives and len(archives) < len(names):
        raise ValueError(f"{path}: lists archives and pictures; make a list of each.")
    missing = next((archive for archive in archives if not archive.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{path}: lists {missing}, which is not there.")
    _check_names(archives)
    return archives, [] if archives else [PictureSource(i, name, folder / name) for i, name in enumerate(names, 1)]


def _from_coco(path: Path, folder: Path) -> list[PictureSource]:
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f'{path}: has no list "images", expected a COCO file.')
    sources = []
    seen: set[Any] = set()
    for number, entry in enumerate(entries, 1):
        image_id = entry_id(entry, number)
        if not isinstance(entry, dict) or entry.get("id") != image_id or image_id in seen:
            raise ValueError(f"{path}: image {image_id} is {shown(entry)}, expected an object with an id of its own.")
        seen.add(image_id)
        try:
            file = path_below(folder, entry.get("file_name"))
        except ValueError as error:
            raise ValueError(f"{path}: image {image_id}: {error}") from error
        sources.append(PictureSource(image_id, entry["file_name"], file))
    return sources


def _check_names(archives: Sequence[Path]) -> None:
    """Pictures are known by the name of their archive, so that must be one archive's alone."""
    by_name: dict[str, Path] = {}
    for path in archives:
        if path.name in by_name:
            raise ValueError(f"{path}: has the same name as {by_name[path.name]}. Rename one of them.")
        by_name[path.name] = path


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _is_picture(member: tarfile.TarInfo) -> bool:
    path = Path(member.name)
    return member.isfile() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
