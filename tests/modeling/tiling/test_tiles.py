"""Where tiles lie and what they count."""

from itertools import pairwise

import pytest
import torch

from mask2former.modeling.tiling.tiles import Tile, overlapping_pairs, plan_tiles


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (200, 97), (1000, 333), (10, 500)])
@pytest.mark.parametrize("overlap", [16, 32])
def test_tiles_cover_the_image_and_overlap_enough(size: tuple[int, int], overlap: int) -> None:
    tiles = plan_tiles(size, 64, overlap, 16)
    covered = torch.zeros(max(size) + 64, max(size) + 64, dtype=torch.int64)
    for tile in tiles:
        assert tile.top % 16 == tile.left % 16 == 0
        covered[tile.slices] += 1
    assert (covered[: size[0], : size[1]] > 0).all()
    # No tile lies outside, and neighbours share at least the overlap.
    for axis, starts in enumerate(({t.top for t in tiles}, {t.left for t in tiles})):
        ordered = sorted(starts)
        assert ordered[-1] == 0 or ordered[-1] + 64 - size[axis] < 16
        assert all(b - a <= 64 - overlap for a, b in pairwise(ordered))


def test_inner_edges_are_where_the_image_goes_on() -> None:
    tiles = plan_tiles((64, 112), 64, 16, 16)
    assert [tile.inner_edges for tile in tiles] == [(False, False, False, True), (False, False, True, False)]
    window = tiles[0].window()
    assert torch.equal(window[0], window[-1])
    assert window[0, :48].eq(1).all()
    assert torch.allclose(window[0, 48:], torch.arange(15.5, 0, -1) / 16)
    assert tiles[1].scaled(4) == Tile(0, 12, 16, 16, (False, False, True, False), 4)


def test_pairs_are_those_that_share_pixels() -> None:
    tiles = plan_tiles((150, 150), 64, 32, 16)
    expected = []
    for i, a in enumerate(tiles):
        for j, b in enumerate(tiles[i + 1 :], start=i + 1):
            canvas = torch.zeros(200, 200)
            canvas[a.slices] += 1
            canvas[b.slices] += 1
            if (canvas == 2).any():
                rows, columns = ((canvas == 2).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
                expected.append((i, j, (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))))
    assert list(overlapping_pairs(tiles)) == expected


@pytest.mark.parametrize(("tile", "overlap"), [(60, 16), (64, 40), (64, 0), (64, 8)])
def test_sizes_that_do_not_fit_are_named(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=rf"tiles of {tile} pixels that overlap by {overlap}.*multiples of 16"):
        plan_tiles((100, 100), tile, overlap, 16)
