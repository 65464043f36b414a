"""Where the tiles of a large image lie, and how much each counts at each of its pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Tile", "default_overlap", "overlapping_pairs", "plan_tiles"]


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image, in pixels or in cells of a coarser grid.

    Attributes:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
        inner_edges: whether (top, bottom, left, right) lies inside the image, where another tile goes on.
        overlap: how far tiles reach into one another at such an edge.
    """

    top: int
    left: int
    height: int
    width: int
    inner_edges: tuple[bool, bool, bool, bool]
    overlap: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the tile, to index the image's last two dimensions."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def scaled(self, stride: int) -> "Tile":
        """The same tile in cells of ``stride`` pixels."""
        return Tile(
            top=self.top // stride,
            left=self.left // stride,
            height=self.height // stride,
            width=self.width // stride,
            inner_edges=self.inner_edges,
            overlap=self.overlap // stride,
        )

    def window(self, device: torch.device | str | None = None) -> Tensor:
        """What the tile's prediction counts at each pixel (height, width), in 0..1 and never 0.

        It falls towards inner edges, near which a network sees only a part of what there is.
        """
        top, bottom, left, right = self.inner_edges
        rows = _ramp(self.height, self.overlap, top, bottom, device)
        return rows[:, None] * _ramp(self.width, self.overlap, left, right, device)


def _ramp(length: int, overlap: int, at_start: bool, at_end: bool, device: torch.device | str | None) -> Tensor:
    centres = torch.arange(length, dtype=torch.float32, device=device) + 0.5
    ramp = torch.ones_like(centres)
    if at_start:
        ramp = ramp.minimum(centres / overlap)
    if at_end:
        ramp = ramp.minimum((length - centres) / overlap)
    return ramp


def default_overlap(tile_size: int, stride: int) -> int:
    """The overlap of tiles where nobody chose one: a quarter of a tile, rounded up to a multiple of ``stride``."""
    return -(-tile_size // (4 * stride)) * stride


def plan_tiles(image_size: tuple[int, int], tile_size: int, overlap: int, stride: int) -> list[Tile]:
    """Cover an image with square tiles, evenly spaced, row by row.

    Args:
        image_size: (height, width) in pixels.
        tile_size: side of a tile; the last tiles may reach beyond the image's end, never by as much as ``stride``.
        overlap: least overlap of neighbours; 0 < overlap <= tile_size / 2.
        stride: tiles begin at multiples of this, so that their grids of features coincide; ``tile_size`` and
            ``overlap`` are multiples of it too.

    Raises:
        ValueError: if sizes do not fit together.
    """
    if tile_size % stride or overlap % stride or not 0 < overlap <= tile_size / 2:
        raise ValueError(
            f"tiles of {tile_size} pixels that overlap by {overlap}: both must be multiples of {stride}, and the "
            "overlap at least that and at most half a tile. Set MODEL.MASK_FORMER.TEST.TILE_SIZE and TILE_OVERLAP, or "
            "tile and tile_overlap."
        )
    rows, columns = (_starts(length, tile_size, overlap, stride) for length in image_size)
    return [
        Tile(
            top=top,
            left=left,
            height=tile_size,
            width=tile_size,
            inner_edges=(top != rows[0], top != rows[-1], left != columns[0], left != columns[-1]),
            overlap=overlap,
        )
        for top in rows
        for left in columns
    ]


def _starts(length: int, tile_size: int, overlap: int, stride: int) -> list[int]:
    if length <= tile_size:
        return [0]
    last = -(-(length - tile_size) // stride)  # in strides, rounded up
    steps = -(-last * stride // (tile_size - overlap))
    return [index * last // steps * stride for index in range(steps + 1)]


def overlapping_pairs(tiles: list[Tile]) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Pairs of tiles that share pixels.

    Args:
        tiles: ordered by rows, as :func:`plan_tiles` gives them.

    Yields:
        The indices of the two tiles, and rows and columns of the image that both have.
    """
    for i, a in enumerate(tiles):
        for j in range(i + 1, len(tiles)):
            b = tiles[j]
            if b.top >= a.top + a.height:
                break  # nor do those that follow, row by row
            left, right = max(a.left, b.left), min(a.left + a.width, b.left + b.width)
            if left < right:
                yield i, j, (slice(b.top, min(a.top + a.height, b.top + b.height)), slice(left, right))
