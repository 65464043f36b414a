"""Drawings as files of a folder."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mask2former.durable_files import saved_bytes, write_file
from mask2former.visualization.sheet import contact_sheet

__all__ = ["save_drawings"]


def save_drawings(drawings: Iterable[tuple[str, np.ndarray, str]], folder: Path, *, sheet: bool = False) -> int:
    """Write drawings as JPEG files, and print a line for each.

    Args:
        drawings: name without suffix, (H, W, 3) uint8 RGB, and what to say about it.
        folder: made where it does not exist.
        sheet: also write ``sheet.jpg``, all of them on one page.

    Returns:
        How many there were.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    shown: list[np.ndarray] = []
    for name, drawing, text in drawings:
        _write_jpeg(folder / f"{name}.jpg", drawing)
        print(f"{name}.jpg: {text}")
        count += 1
        if sheet:
            shown.append(drawing)
    if shown:
        _write_jpeg(folder / "sheet.jpg", contact_sheet(shown))
    print(f"{count} pictures -> {folder}/")
    return count


def _write_jpeg(path: Path, rgb: np.ndarray) -> None:
    write_file(path, saved_bytes(partial(Image.fromarray(rgb).save, format="jpeg", quality=92)))
