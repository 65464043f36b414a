"""Which pictures are meant, and where the results go."""

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Job", "find_pictures", "plan_outputs", "plan_video_output"]

_PICTURE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Job:
    """One picture and the files that its results go to."""

    picture: Path
    drawing: Path
    json: Path
    ids: Path


def find_pictures(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Resolve files, folders and patterns.

    A folder stands for the pictures that lie in it, not in its sub-folders; the pattern "folder/**" reaches those too.
    Nothing is listed twice.

    Args:
        inputs: as given on the command line; "~" is the home folder.

    Returns:
        The pictures, in the order given and by name within a folder or pattern; and one complaint for each input that
        stands for nothing.
    """
    pictures: dict[Path, None] = {}
    complaints = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            found = _pictures_among(path.iterdir())
        elif path.exists():
            found = [path]  # whatever its name: the reader decides
        else:
            found = _pictures_among(map(Path, glob.glob(str(path), recursive=True)))
        if not found:
            complaints.append(f"{given}: {_why_nothing(path)}")
        pictures.update(dict.fromkeys(found))
    return list(pictures), complaints


def plan_outputs(pictures: Sequence[Path], output: Path) -> list[Job]:
    """Choose the files to write.

    Args:
        pictures: not empty.
        output: a folder; or, for a single picture, the file of its drawing (a name that ends as pictures do).

    Returns:
        One job for each picture. Names that would clash get a number.

    Raises:
        ValueError: a result would overwrite a picture that is to be read.
    """
    is_file = len(pictures) == 1 and not output.is_dir() and output.suffix.lower() in _PICTURE_SUFFIXES
    taken: set[Path] = set()
    jobs = []
    for picture in pictures:
        suffix = picture.suffix if picture.suffix.lower() in _PICTURE_SUFFIXES else ".png"
        wanted = output if is_file else output / (picture.stem + suffix)
        number, job = 1, _job(picture, wanted)
        while taken & _files(job):
            number += 1
            job = _job(picture, wanted.with_stem(f"{wanted.stem}_{number}"))
        taken |= _files(job)
        jobs.append(job)
    overwritten = {path.resolve() for path in taken} & {path.resolve() for path in pictures}
    if overwritten:
        raise ValueError(f"{min(overwritten)} would be overwritten by its own result; choose another --output")
    return jobs


def plan_video_output(video: Path, output: Path) -> Path:
    """The file to write: ``output`` itself, or ``<name of the video>.mp4`` in it where it is a folder.

    Raises:
        ValueError: that would overwrite the video that is to be read.
    """
    path = output if output.suffix and not output.is_dir() else output / f"{video.stem}.mp4"
    if path.resolve() == video.resolve():
        raise ValueError(f"{path} would be overwritten by its own result; choose another --output")
    return path


def _job(picture: Path, drawing: Path) -> Job:
    return Job(picture, drawing, drawing.with_suffix(".json"), drawing.with_name(f"{drawing.stem}_ids.png"))


def _files(job: Job) -> set[Path]:
    return {job.drawing, job.json, job.ids}


def _pictures_among(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in _PICTURE_SUFFIXES and path.is_file())


def _why_nothing(path: Path) -> str:
    if path.is_dir():
        return "no pictures in this folder (its sub-folders are not searched)"
    if glob.has_magic(str(path)):
        return "no picture matches this pattern"
    return "no such file"
