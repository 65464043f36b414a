"""What people call a picture, as an array: files, folders, patterns, PIL images, arrays, tensors."""

import glob
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask2former.data.datasets.files import IMAGE_SUFFIXES
from mask2former.home import expand_home
from mask2former.image_io import read_image, to_eight_bits

__all__ = ["Picture", "find_pictures", "is_single", "iterate_sources", "open_picture"]

_WRONG_TYPE = (
    "a picture has dtype {}, expected uint8 (0 to 255). Scale it to that range: floats in 0..1, for example, with "
    "(image * 255).round().astype('uint8')."
)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        path: the file that it comes from, or None.
    """

    image: np.ndarray
    path: Path | None = None


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
        if not given:  # of a variable that is not set, perhaps; as a path it is the working directory
            complaints.append("a picture's name is empty; '.' stands for the pictures in the working directory")
            continue
        path = expand_home(given)
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


def is_single(source: Any) -> bool:
    """Whether a source is one picture, and not a folder, a pattern or a collection."""
    if isinstance(source, str | Path):
        path = expand_home(source)
        return path.is_file() or not (path.is_dir() or glob.has_magic(str(path)))
    return isinstance(source, Image.Image | np.ndarray | torch.Tensor)


def iterate_sources(sources: Any) -> Iterator[Any]:
    """Take collections, folders and patterns apart into single pictures, not yet read.

    Raises:
        FileNotFoundError: a folder or a pattern stands for nothing.
    """
    if is_single(sources):
        yield sources
    elif isinstance(sources, str | Path):
        paths, complaints = find_pictures([str(sources)])
        if complaints:
            raise FileNotFoundError(complaints[0])
        yield from paths
    elif isinstance(sources, Iterable) and not isinstance(sources, bytes | Mapping | io.IOBase):
        for source in sources:
            yield from iterate_sources(source)
    else:
        yield sources  # not a picture either, which open_picture will say


def open_picture(source: Any) -> Picture:
    """Read a picture, upright as its EXIF data say.

    Args:
        source: a path; a PIL image; an array (H, W, 3) uint8 RGB or (H, W) uint8 gray; or a tensor (3, H, W) or
            (1, H, W) uint8 in the same order.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file cannot be read as a picture, or an array has another shape or type.
        TypeError: the source is of no such kind.
    """
    if isinstance(source, str | Path):
        path = expand_home(source)
        return Picture(np.ascontiguousarray(read_image(path)), path)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "")  # empty where it was not read from a file of a name
        if 0 in source.size:  # as of a crop outside
            width, height = source.size
            raise ValueError(f"a PIL image has {width} x {height} pixels, expected a picture that is not empty.")
        try:
            return Picture(to_eight_bits(source), Path(name) if name else None)
        except OSError as error:  # Pillow reads the pixels only now
            raise ValueError(
                f"{name or 'a PIL image'}: cannot be read ({error}); it is damaged or cut short."
            ) from error
    if isinstance(source, torch.Tensor):
        if source.dim() != 3 or source.shape[0] not in (1, 3):
            raise ValueError(f"a tensor has shape {tuple(source.shape)}, expected (3, H, W) RGB or (1, H, W) gray.")
        if source.dtype != torch.uint8:  # some have no counterpart in NumPy
            raise ValueError(_WRONG_TYPE.format(str(source.dtype).removeprefix("torch.")))
        source = source.cpu().numpy().transpose(1, 2, 0)
        source = source[..., 0] if source.shape[-1] == 1 else source
    if isinstance(source, np.ndarray):
        return Picture(_checked(source))
    raise TypeError(
        f"a picture is a path, a PIL image, an array (H, W, 3) uint8 RGB or a tensor (3, H, W) uint8 RGB, "
        f"not a {type(source).__name__}."
    )


def _checked(array: np.ndarray) -> np.ndarray:
    """An array of the user's as (H, W, 3) uint8 RGB, copied, because the next frame may come into the same one."""
    if array.dtype != np.uint8:
        raise ValueError(_WRONG_TYPE.format(array.dtype))
    if array.ndim == 2:
        array = np.repeat(array[:, :, np.newaxis], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"a picture has shape {array.shape}, expected (H, W, 3) RGB or (H, W) gray, not empty.")
    return np.array(array, order="C")


def _pictures_among(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _why_nothing(path: Path) -> str:
    if path.is_dir():
        return "no pictures in this folder (its sub-folders are not searched)"
    if glob.has_magic(str(path)):
        return "no picture matches this pattern"
    return "no such file"
