"""Many pictures as one."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["contact_sheet"]

_GAP = 8  # pixels between the cells, and around them


def contact_sheet(pictures: Sequence[np.ndarray], *, columns: int | None = None, side: int = 320) -> np.ndarray:
    """Arrange pictures in rows of equal cells, each centred in its own.

    Args:
        pictures: at least one, (H, W, 3) uint8, of any sizes.
        columns: cells a row; None makes about as many rows as columns.
        side: larger pictures are shrunk until none of their sides is longer, in pixels.

    Returns:
        (H, W, 3) uint8, on white.
    """
    small = [_shrink(picture, side) for picture in pictures]
    columns = min(len(small), columns or math.ceil(len(small) ** 0.5))
    rows = math.ceil(len(small) / columns)
    cell = np.max([picture.shape[:2] for picture in small], axis=0)
    height, width = (rows, columns) * (cell + _GAP) + _GAP
    sheet = np.full((height, width, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(small):
        top, left = np.array(divmod(i, columns)) * (cell + _GAP) + _GAP + (cell - picture.shape[:2]) // 2
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _shrink(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
