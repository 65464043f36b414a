"""Segments that several tiles of an image saw, each a part of, put together."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..postprocessing.mask_iou import pairwise_iou
from .tiles import Tile, overlapping_pairs

__all__ = ["SURELY_OUTSIDE", "MaskPatch", "Piece", "merge_pieces"]

# Outside what the tiles of a segment saw, its mask is surely empty.
SURELY_OUTSIDE = -20.0
# Two pieces are of one object if they agree this well where both tiles look.
_LEAST_IOU = 0.5


@dataclass(frozen=True)
class Piece:
    """What one query says about one tile.

    Attributes:
        tile: index of the tile.
        probabilities: (K + 1,), "no object" last.
        logits: mask logits (h, w) over the tile.
    """

    tile: int
    probabilities: Tensor
    logits: Tensor


@dataclass(frozen=True)
class MaskPatch:
    """A segment of the whole image, with its mask where a tile saw it and nowhere else.

    Attributes:
        probabilities: (K + 1,), "no object" last.
        top: first row of the patch.
        left: first column.
        logits: mask logits (h, w).
    """

    probabilities: Tensor
    top: int
    left: int
    logits: Tensor


def merge_pieces(pieces: Sequence[Piece], tiles: Sequence[Tile], thing_classes: Collection[int]) -> list[MaskPatch]:
    """Join the pieces of each object across the seams, and all pieces of a class of stuff.

    Pieces of two tiles are one object if their class is the same and their masks overlap by an IoU of at least one half
    where both tiles look, at most one of one tile with one of the other. A piece that no other tile agrees with stays
    only if its centre is nearer to the middle of its own tile than of any other: there its tile sees most.

    Args:
        pieces: none of them empty, and none whose most probable class is "no object" alone.
        tiles: in the masks' resolution, row by row.
        thing_classes: countable classes; of any other class an image has one segment.

    Returns:
        Segments, in the order of their first piece. Masks are averages of logits, weighted by the tiles' windows.
    """
    if not pieces:
        return []
    windows = [tile.window(pieces[0].logits.device) for tile in tiles]
    owners = _owners(tiles, windows)
    labels = [int(piece.probabilities[:-1].argmax()) for piece in pieces]
    things = [index for index, label in enumerate(labels) if label in thing_classes]
    joined = list(_agreeing_pairs(pieces, tiles, labels, things))
    joined += [(labels.index(label), index) for index, label in enumerate(labels) if label not in thing_classes]
    merged = []
    for members in _groups(len(pieces), joined):
        group = [pieces[index] for index in members]
        is_stuff = labels[members[0]] not in thing_classes
        if len(group) > 1 or is_stuff or owners[_centre(group[0], tiles)] == group[0].tile:
            merged.append(_blend(group, tiles, windows))
    return merged


def _groups(count: int, joined: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The numbers below ``count`` in groups, each with all that pairs link, in the order of their first member."""
    first, second = np.array(joined, dtype=np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(joined)), (first, second)), shape=(count, count))
    number, group_of = connected_components(links, directed=False)
    return [np.flatnonzero(group_of == group).tolist() for group in range(number)]


def _agreeing_pairs(
    pieces: Sequence[Piece], tiles: Sequence[Tile], labels: Sequence[int], things: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Indices of pieces that are one object, seen by two tiles."""
    by_tile: dict[int, list[int]] = defaultdict(list)
    for index in things:
        by_tile[pieces[index].tile].append(index)
    inside = {tile: torch.stack([pieces[i].logits > 0 for i in by_tile[tile]]) for tile in by_tile}
    scores = np.array([float(piece.probabilities[:-1].max()) for piece in pieces])
    classes = np.array(labels)
    for first, second, shared in overlapping_pairs(list(tiles)):
        if first not in by_tile or second not in by_tile:
            continue
        a, b = np.array(by_tile[first]), np.array(by_tile[second])
        iou = pairwise_iou(*(_crop(inside[t], tiles[t], shared) for t in (first, second))).cpu().numpy()  # (A, B)
        possible = (iou >= _LEAST_IOU) & (classes[a][:, None] == classes[b])
        # Of several queries on one object, the surest ones belong together.
        benefit = np.where(possible, iou * scores[a][:, None] * scores[b], 0)
        for row, column in zip(*linear_sum_assignment(benefit, maximize=True), strict=True):
            if possible[row, column]:
                yield int(a[row]), int(b[column])


def _crop(masks: Tensor, tile: Tile, area: tuple[slice, slice]) -> Tensor:
    rows, columns = area
    rows_here = slice(rows.start - tile.top, rows.stop - tile.top)
    return masks[..., rows_here, columns.start - tile.left : columns.stop - tile.left]


def _owners(tiles: Sequence[Tile], windows: Sequence[Tensor]) -> Tensor:
    """For each cell (H, W) the tile whose window is highest there: the one that sees most around it."""
    size = max(tile.top + tile.height for tile in tiles), max(tile.left + tile.width for tile in tiles)
    highest = windows[0].new_zeros(size)
    owners = torch.zeros(size, dtype=torch.int64, device=highest.device)
    for index, (tile, window) in enumerate(zip(tiles, windows, strict=True)):
        better = window > highest[tile.slices]
        owners[tile.slices][better] = index
        highest[tile.slices][better] = window[better]
    return owners


def _centre(piece: Piece, tiles: Sequence[Tile]) -> tuple[int, int]:
    """Row and column, in the whole image, of the middle of a piece's mask."""
    row, column = (piece.logits > 0).nonzero().float().mean(0).round().long().tolist()
    return row + tiles[piece.tile].top, column + tiles[piece.tile].left


def _blend(pieces: Sequence[Piece], tiles: Sequence[Tile], windows: Sequence[Tensor]) -> MaskPatch:
    mine = [tiles[piece.tile] for piece in pieces]
    top, left = min(tile.top for tile in mine), min(tile.left for tile in mine)
    bottom, right = max(tile.top + tile.height for tile in mine), max(tile.left + tile.width for tile in mine)
    total = pieces[0].logits.new_zeros((bottom - top, right - left))
    weight = torch.zeros_like(total)
    masses = []
    for tile, pieces_of_tile in _by_tile(pieces):
        # Several of one tile, as stuff has, cover what any of them covers.
        logits = torch.stack([piece.logits for piece in pieces_of_tile]).amax(0)
        window = windows[tile]
        area = (
            slice(tiles[tile].top - top, tiles[tile].top - top + tiles[tile].height),
            slice(tiles[tile].left - left, tiles[tile].left - left + tiles[tile].width),
        )
        total[area] += window * logits
        weight[area] += window
        masses += [(piece, float((window * piece.logits.sigmoid()).sum())) for piece in pieces_of_tile]
    logits = torch.where(weight > 0, total / weight.clamp(min=1e-12), SURELY_OUTSIDE)
    mean = torch.stack([piece.probabilities * mass for piece, mass in masses]).sum(0)
    mean = mean / sum(mass for _, mass in masses)
    return _trim(MaskPatch(mean, top, left, logits))


def _by_tile(pieces: Sequence[Piece]) -> Iterator[tuple[int, list[Piece]]]:
    by_tile: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_tile[piece.tile].append(piece)
    return iter(by_tile.items())


def _trim(patch: MaskPatch) -> MaskPatch:
    """Cut away rows and columns in which the mask is surely empty."""
    occupied = patch.logits > SURELY_OUTSIDE / 2
    rows, columns = (occupied.any(dim).nonzero().flatten() for dim in (1, 0))
    if len(rows) == 0:
        return patch
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return MaskPatch(
        patch.probabilities, patch.top + top, patch.left + left, patch.logits[top:bottom, left:right].clone()
    )
