"""How large the network sees pictures: whole, or in tiles where objects are small and many."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mask2former.data import Inspection

__all__ = ["Crops", "choose_crops"]

_LARGEST = {True: 1024, False: 512}  # on a GPU, and on a CPU, where a step takes long
_SMALLEST = 256
_SMALL_OBJECT = 16  # pixels of the network's input: two of the finest map that the decoder attends to
_MANY = 200  # segments: more queries than that learn slowly


@dataclass(frozen=True)
class Crops:
    """The choice.

    Attributes:
        side: Of the square that training sees, in pixels.
        most_segments: To be found in one pass of the network.
        scale: Of the pictures where they are cut into tiles; None where they are seen whole.
        overlap: Of tiles, in pixels.
        reason: For people.
    """

    side: int
    most_segments: int
    reason: str
    scale: float | None = None
    overlap: int = 0

    @property
    def tiles(self) -> bool:
        """Whether pictures are cut into tiles."""
        return self.scale is not None

    def settings(self) -> list[tuple[str, Any, str]]:
        """Keys, values and reasons."""
        side = ("INPUT.IMAGE_SIZE", self.side, self.reason)
        if self.scale is None:
            whole = "a test picture's longer edge becomes as long as a training picture's"
            return [
                side,
                ("INPUT.MIN_SCALE", 0.5, "training sees objects at half to twice their size"),
                ("INPUT.MAX_SCALE", 2.0, "training sees objects at half to twice their size"),
                ("INPUT.MIN_SIZE_TEST", self.side, whole),
                ("INPUT.MAX_SIZE_TEST", self.side, whole),
            ]
        sizes = "training sees objects at 2/3 to 3/2 of their size in tests"
        return [
            side,
            ("INPUT.SCALE_REFERENCE", "image", "crops are cut from the pictures at about their own size"),
            ("INPUT.MIN_SCALE", round(0.67 * self.scale, 2), sizes),
            ("INPUT.MAX_SCALE", round(1.5 * self.scale, 2), sizes),
            ("INPUT.TEST_SCALE", self.scale, "what makes small objects large enough"),
            ("MODEL.MASK_FORMER.TEST.TILE_SIZE", self.side, "test pictures are cut into tiles like the training crops"),
            ("MODEL.MASK_FORMER.TEST.TILE_OVERLAP", self.overlap, "most objects are whole in one of two tiles"),
        ]


def choose_crops(
    inspection: Inspection,
    fits: Callable[[int], float],
    *,
    gpu: bool,
    queries: int,
    may_tile: bool,
    side: int | None = None,
) -> Crops:
    """Choose.

    Args:
        inspection: Of the training data.
        fits: How many images of a side fit into memory.
        gpu: Whether there is one.
        queries: Of the model: a tile should not have more segments.
        may_tile: Whether pictures may be cut into tiles.
        side: The user's choice of the side, or None.
    """
    longer = max(inspection.heights[1], inspection.widths[1])
    largest = side or _largest_that_fits(fits, _LARGEST[gpu], wanted=4 if gpu else 2)
    whole = side or max(_SMALLEST, min(largest, _to_32(longer)))
    object_size = inspection.object_sizes[2] * min(1.0, whole / max(longer, 1))
    small = 0 < object_size < _SMALL_OBJECT and longer > whole
    many = inspection.most_segments > _MANY
    if may_tile and (small or many):
        why = f"half of the objects would be smaller than {object_size:.0f} pixels" if small else ""
        why = why or f"the fullest image has {inspection.most_segments} segments"
        return _tiles(inspection, largest, side, queries, why)
    if side:
        return Crops(side, inspection.most_segments, "as given")
    reason = f"the longer edge of half of the images is {longer} pixels or less"
    if whole < longer:
        reason += f"; {whole} is the largest that {'memory holds' if gpu else 'a CPU trains in good time'}"
    elif whole > _to_32(longer):
        reason += f"; small pictures are enlarged to {whole}"
    return Crops(whole, inspection.most_segments, reason)


def _tiles(inspection: Inspection, largest: int, side: int | None, queries: int, why: str) -> Crops:
    typical = max(inspection.object_sizes[2], 1.0)
    scale = min(2.0, max(1.0, math.ceil(4 * 1.5 * _SMALL_OBJECT / typical) / 4))

    def expected(tile: int) -> int:
        return min(inspection.most_segments, math.ceil(inspection.most_in_area * (tile / scale) ** 2 / 1e6))

    least = min(largest, max(192, _to_32(2 * inspection.longest_object * scale)))
    tile = side or next((t for t in range(largest, least, -32) if expected(t) <= queries), least)
    overlap = min(_to_32(inspection.longest_object * scale), tile // 64 * 32)
    reason = f"{why}, so pictures are cut into tiles; one has about {expected(tile)} segments at most"
    return Crops(tile, expected(tile), reason, scale, overlap)


def _largest_that_fits(fits: Callable[[int], float], largest: int, wanted: int) -> int:
    """The largest side of which ``wanted`` images fit, or the smallest."""
    return next((side for side in range(largest, _SMALLEST, -128) if fits(side) >= wanted), _SMALLEST)


def _to_32(value: float) -> int:
    return max(32, math.ceil(value / 32) * 32)
