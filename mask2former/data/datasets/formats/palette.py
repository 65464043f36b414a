"""Tables of classes and colours, and pictures that are painted in them."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mask2former.image_io import read_image

from ..faults import Faults
from ..json_files import read_text

__all__ = ["VOID", "Palette", "looks_like_palette", "read_palette"]

VOID = "void"  # the name of unlabelled pixels, also in CLASS_NAMES and BACKGROUND
_COLOR = r"(?P<red>\d{1,3})[\s,;]+(?P<green>\d{1,3})[\s,;]+(?P<blue>\d{1,3})"
_LINES = (
    re.compile(rf"(?P<name>[^:]+):\s*{_COLOR}\s*(:.*)?"),  # CVAT: road:128,64,128:parts:actions
    re.compile(rf"{_COLOR}[\s,;]+(?P<name>\S.*)"),  # 128 64 128 road
    re.compile(rf"(?P<name>\S.*?)[\s,;]+{_COLOR}"),  # road,128,64,128
)
_HEADER = re.compile(r"(name|class|label)?[\s,;]*r(ed)?[\s,;]+g(reen)?[\s,;]+b(lue)?[\s,;]*(name|class|label)?", re.I)


@dataclass(frozen=True)
class Palette:
    """Which colour stands for which class.

    Attributes:
        names: Of the entries, as the table orders them; "void" for what is unlabelled.
        colors: RGB of each, 0 to 255.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def read(self, path: str | Path) -> np.ndarray:
        """Read a picture in these colours.

        Args:
            path: A PNG, of RGB or with a palette of its own.

        Returns:
            (H, W) int64, the place of each pixel's colour in the table.

        Raises:
            FileNotFoundError: Nothing is there.
            ValueError: It is no picture, or has a colour that is not in the table.
        """
        pixels = _as_number(read_image(path).astype(np.int64))
        table = _as_number(np.array(self.colors, dtype=np.int64))
        order = np.argsort(table)
        places = order[np.searchsorted(table, pixels, sorter=order).clip(max=len(table) - 1)]
        unknown = table[places] != pixels
        if unknown.any():
            raise ValueError(_describe_unknown(path, pixels, unknown))
        return places


def read_palette(path: Path) -> Palette:
    """Read a table of one class a line: ``128 64 128 road``, ``road,128,64,128`` or CVAT's ``road:128,64,128::``.

    Empty lines, lines that begin with ``#`` and a line of column names do not count. Several colours may be ``void``,
    which is unlabelled.

    Raises:
        FileNotFoundError: Nothing is there.
        DataError: Lines are wrong.
    """
    faults = Faults()
    entries: dict[tuple[int, int, int], str] = {}
    for number, line in _lines(read_text(path)):
        with faults.catch(path, f"line {number}"):
            name, color = _parse(line)
            if color in entries:
                raise ValueError(f"{name!r} has the colour {color} of {entries[color]!r}.")
            if name != VOID and name in entries.values():
                raise ValueError(f"{name!r} occurs more than once.")
            entries[color] = name
    faults.raise_any()
    if not set(entries.values()) - {VOID}:
        faults.add(path, "has no class, expected lines such as '128 64 128 road'.")
        faults.raise_any()
    return Palette(tuple(entries.values()), tuple(entries))


def looks_like_palette(path: Path) -> bool:
    """Whether a table of classes has colours: its first line does, or its second, after names of columns."""
    return any(pattern.fullmatch(line) for _, line in _lines(read_text(path))[:2] for pattern in _LINES)


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines that count, with their numbers."""
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(n, line) for n, line in stripped if line and not line.startswith("#") and not _HEADER.fullmatch(line)]


def _parse(line: str) -> tuple[str, tuple[int, int, int]]:
    match = next((match for pattern in _LINES if (match := pattern.fullmatch(line))), None)
    if match is None:
        raise ValueError(f"is {line[:60]!r}, expected a class and its colour, such as '128 64 128 road'.")
    red, green, blue = int(match["red"]), int(match["green"]), int(match["blue"])
    if max(red, green, blue) > 255:
        raise ValueError(f"has the colour {red, green, blue}, expected values from 0 to 255.")
    return match["name"].strip(), (red, green, blue)


def _as_number(colors: np.ndarray) -> np.ndarray:
    """(..., 3) to (...)."""
    return colors @ np.array([65536, 256, 1])


def _describe_unknown(path: str | Path, pixels: np.ndarray, unknown: np.ndarray) -> str:
    values, counts = np.unique(pixels[unknown], return_counts=True)
    value = int(values[counts.argmax()])
    row, column = np.argwhere(pixels == value)[0].tolist()
    color = value >> 16, value >> 8 & 255, value & 255
    blurred = " So many colours come of JPEG or of smooth resizing: export the PNGs anew." * (len(values) > 9)
    return (
        f"{path}: has {len(values)} colours that the table of classes does not have, {color} the most frequent with "
        f"{counts.max()} pixels, the first in row {row}, column {column}. Add them, as 'void' if they are unlabelled."
        f"{blurred}"
    )
