"""Many pictures as one."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["contact_sheet"]

_GAP = 8  # pixels between the cells, and around them


def contact_sheet(pictures: Sequence[np.ndarray], *, columns: int | None = None, cell: int = 320) -> np.ndarray:
    """Arrange pictures in rows, each shrunk into a square cell; those that are smaller stay as they are.

    Args:
        pictures: at least one, (H, W, 3) uint8, of any sizes.
        columns: cells a row; None makes about as many rows as columns.
        cell: largest side of a cell in pixels.

    Returns:
        (H, W, 3) uint8, on white.
    """
    columns = min(len(pictures), columns or math.ceil(len(pictures) ** 0.5))
    rows = -(-len(pictures) // columns)
    cell = min(cell, max(max(picture.shape[:2]) for picture in pictures))
    step = cell + _GAP
    sheet = np.full((rows * step + _GAP, columns * step + _GAP, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        small = _fit(picture, cell)
        height, width = small.shape[:2]
        top = _GAP + i // columns * step + (cell - height) // 2
        left = _GAP + i % columns * step + (cell - width) // 2
        sheet[top : top + height, left : left + width] = small
    return sheet


def _fit(picture: np.ndarray, cell: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = min(1.0, cell / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
