"""What every format of own data gives, whatever its files look like."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from mask2former.image_io import verify_image

from ..cache import run_parallel
from ..categories import Category
from ..faults import Faults
from ..files import read_lines

__all__ = ["FAULTS_FILE", "INSTANCES_FILE", "PANOPTIC_FILE", "Source", "choose_images", "verify_images"]

# What ``Source.convert`` writes.
INSTANCES_FILE = "instances.json"
PANOPTIC_FILE = "panoptic.json"
FAULTS_FILE = "faults.json"


class Source(Protocol):
    """Annotation files of one format, and how to read them.

    Attributes:
        images: Folder of images.
        panoptic: Whether there are panoptic annotations; otherwise instances, which may overlap.
    """

    @property
    def images(self) -> Path: ...

    @property
    def panoptic(self) -> bool: ...

    def files(self) -> list[Path]:
        """All files that it is read from.

        Raises:
            FileNotFoundError: A file or folder is not there.
        """
        ...

    def categories(self) -> tuple[Category, ...]:
        """The classes; a panoptic source may also have stuff.

        Raises:
            FileNotFoundError: The file that has them is not there.
            DataError: It is wrong.
        """
        ...

    def convert(self, folder: Path, list_file: Path | None) -> tuple[Category, ...]:
        """Check everything and write it into a folder in COCO's form: what is right, and a list of what is not.

        ``instances.json`` has the instances; a panoptic source writes ``panoptic.json`` and a folder ``semantic`` of
        PNGs of classes too. ``faults.json`` lists what is left out.

        Args:
            folder: Where to.
            list_file: Names the images to take, one a line; None takes all.

        Returns:
            The classes, as :meth:`categories`.

        Raises:
            DataError: Nothing can be made of it.
        """
        ...

    def segments(self, folder: Path) -> Path:
        """The folder of panoptic PNGs of what was converted into ``folder``."""
        ...


def choose_images(names: Iterable[str], list_file: Path | None, where: Path) -> Collection[str]:
    """The images to take.

    Args:
        names: All, as paths below the folder of images.
        list_file: Names the ones to take, one a line, with or without suffix; None takes all.
        where: What lists all of them, for messages.

    Raises:
        FileNotFoundError: One is not there, or the list itself is not.
    """
    names = list(names)
    if list_file is None:
        return names
    by_line = {spelling: name for name in names for spelling in (name.strip(), str(Path(name).with_suffix("")))}
    by_line |= {name: name for name in names}
    chosen = {}
    for line in read_lines(list_file):
        if line not in by_line:
            raise FileNotFoundError(f"{list_file}: names {line}, but {where} has no such image.")
        chosen[by_line[line]] = True
    return chosen.keys()


def verify_images(paths: Iterable[Path], names: Iterable[str], faults: Faults) -> dict[str, tuple[int, int]]:
    """Decode images, so that a damaged one is found now and not in the middle of a training.

    Args:
        paths: Their files.
        names: Their names, by which they are returned.
        faults: Receives those that cannot be read.

    Returns:
        Height and width of those that can.
    """

    def verify(task: tuple[Path, str]) -> tuple[int, int] | Exception:
        try:
            return verify_image(task[0])
        except (ValueError, FileNotFoundError) as error:
            return error

    tasks = list(zip(paths, names, strict=True))
    sizes = {}
    for (path, name), result in zip(tasks, run_parallel(verify, tasks, "Checking images"), strict=True):
        if isinstance(result, Exception):
            faults.add(path, str(result), image=name)
        else:
            sizes[name] = result
    return sizes
