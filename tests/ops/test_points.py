"""Native values of masks and embeddings at points, against `grid_sample` in float64 and `topk`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from other_instructions import run_with_instructions
from torch import Tensor
from torch.nn import functional as F

from mask2former.ops import _library
from mask2former.ops.points import has_native_points, most_uncertain, sample_masks, sample_pixels

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)

SIZES = [(1, 1), (2, 3), (9, 8), (37, 50)]
COUNTS = [1, 16, 530]  # fewer points than a vector has, as many, and more than are looked at together
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def make_points(*shape: int) -> Tensor:
    """Random ones, some outside, and at the front of each row an edge, a corner and a centre."""
    points = torch.rand(*shape, 2) * 1.4 - 0.2
    special = torch.tensor([[0.0, 0.5], [1.0, 1.0], [0.5, 0.5]])[: shape[-1]]
    points[..., : len(special), :] = special
    return points


def exact(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (R, C, H, W) at points (R, P, 2): (R, C, P) in float64."""
    grid = 2 * points.double() - 1
    return F.grid_sample(maps.double(), grid[:, None], align_corners=False)[:, :, 0]


def certainties(logits: Tensor, points: Tensor) -> Tensor:
    return exact(logits[:, None], points)[:, 0].abs()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels(size: tuple[int, int], count: int, dtype: torch.dtype) -> None:
    pixels, points = torch.randn(*size, 64).to(dtype), make_points(count)
    samples = sample_pixels(pixels, points)
    assert samples.dtype == dtype
    expected = exact(pixels.permute(2, 0, 1)[None], points[None])[0].T
    torch.testing.assert_close(samples.double(), expected, rtol=0, atol=TOLERANCE[dtype] * 4)


def test_bfloat16_is_rounded_once() -> None:
    pixels, points = torch.randn(9, 8, 32).bfloat16(), make_points(500)
    expected = sample_pixels(pixels.float(), points).bfloat16()
    assert torch.equal(sample_pixels(pixels, points), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", SIZES)
def test_masks(size: tuple[int, int], count: int, shared: bool, dtype: torch.dtype) -> None:
    maps = torch.randint(0, 3, (2, *size)).to(dtype)
    indices, ids = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 2, 1, 1], dtype=torch.int32)
    points = make_points(3, 1 if shared else 4, count)
    samples = sample_masks(maps, indices, ids, points)
    masks = maps[indices] == ids[:, None, None]
    for of_layer, where in zip(samples, points.expand(3, 4, -1, -1), strict=True):
        torch.testing.assert_close(of_layer.double(), exact(masks[:, None], where)[:, 0], rtol=0, atol=2e-5)
    assert float(samples.max()) <= 1


def test_inside_a_mask_is_one() -> None:
    points = torch.rand(1, 1, 1000, 2) * 0.9 + 0.05
    samples = sample_masks(torch.ones(1, 40, 40, dtype=torch.uint8), torch.tensor([0]), torch.ones(1).int(), points)
    torch.testing.assert_close(samples, torch.ones(1, 1, 1000), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chosen", [0, 1, 100, 529, 530])
@pytest.mark.parametrize("size", SIZES)
def test_most_uncertain(size: tuple[int, int], chosen: int) -> None:
    logits, candidates = torch.randn(3, *size), torch.rand(3, 530, 2)
    points = most_uncertain(logits, candidates, chosen)
    assert points.shape == (3, chosen, 2)
    expected = certainties(logits, candidates).topk(chosen, dim=1, largest=False).values
    torch.testing.assert_close(certainties(logits, points).sort(dim=1).values, expected, rtol=0, atol=2e-6)
    for candidate, point in zip(candidates.tolist(), points.tolist(), strict=True):
        assert len({tuple(x) for x in point}) == chosen  # each one once
        assert {tuple(x) for x in point} <= {tuple(x) for x in candidate}


def test_of_equal_candidates_the_first() -> None:
    candidates = torch.rand(1, 100, 2)
    assert torch.equal(most_uncertain(torch.zeros(1, 4, 4), candidates, 30), candidates[:, :30])


def test_not_a_number_is_the_last_choice() -> None:
    logits = torch.full((1, 1, 4), 9.0)
    logits[0, 0, 0] = torch.nan
    candidates = torch.tensor([[[0.05, 0.5], [0.3, 0.5], [0.8, 0.5], [0.9, 0.5]]])
    assert torch.equal(most_uncertain(logits, candidates, 3), candidates[:, [2, 3, 0]])
    assert torch.equal(most_uncertain(logits, candidates, 4), candidates[:, [2, 3, 0, 1]])


def test_wild_points_read_nothing_outside() -> None:
    wild = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.5])
    points = torch.cartesian_prod(wild, wild)
    samples = sample_masks(
        torch.ones(1, 3, 5, dtype=torch.uint8), torch.tensor([0]), torch.ones(1).int(), points[None, None]
    )
    finite = points.isfinite().all(1)
    expected = (points == 0.5).all(1).float()
    assert torch.equal(samples[0, 0, finite], expected[finite])
    assert sample_pixels(torch.ones(3, 5, 32), points).shape == (36, 32)
    assert most_uncertain(torch.ones(1, 3, 5), points[None], 20).shape == (1, 20, 2)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_threads_and_layouts_make_no_difference(threads: int) -> None:
    calls = make_calls()
    expected = [operator(*arguments) for operator, arguments in calls]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for (operator, arguments), result in zip(calls, expected, strict=True):
            turned = [x.mT.contiguous().mT if isinstance(x, Tensor) and x.dim() > 1 else x for x in arguments]
            assert torch.equal(operator(*turned), result)
    finally:
        torch.set_num_threads(before)


def make_calls() -> list[tuple[Any, Sequence[Any]]]:
    operators = torch.ops.mask2former
    maps = torch.randint(0, 3, (2, 9, 8)).to(torch.uint8)
    indices, ids = torch.tensor([0, 1, 1]), torch.tensor([1, 2, 1], dtype=torch.int32)
    return [
        (operators.sample_pixels.default, (torch.randn(9, 8, 64), make_points(600))),
        (operators.sample_pixels.default, (torch.randn(9, 8, 32).bfloat16(), make_points(600))),
        (operators.sample_masks.default, (maps, indices, ids, make_points(2, 1, 600))),
        (operators.sample_masks.default, (maps.int(), indices, ids, make_points(2, 3, 600))),
        (operators.most_uncertain.default, (torch.randn(5, 9, 8), torch.rand(5, 600, 2), 150)),
    ]


@pytest.mark.parametrize("call", range(5))
def test_opcheck(call: int) -> None:
    torch.library.opcheck(*make_calls()[call])


def test_empty() -> None:
    assert sample_pixels(torch.ones(2, 2, 32), torch.ones(0, 2)).shape == (0, 32)
    none, maps = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2, dtype=torch.uint8)
    assert sample_masks(maps, none, none.int(), torch.ones(3, 1, 5, 2)).shape == (3, 0, 5)
    assert sample_masks(maps, none, none.int(), torch.ones(3, 0, 5, 2)).shape == (3, 0, 5)
    assert most_uncertain(torch.ones(0, 2, 2), torch.ones(0, 5, 2), 3).shape == (0, 3, 2)


def test_what_it_is_for() -> None:
    points, map_ = torch.rand(3, 2), torch.rand(2, 2, requires_grad=True)
    assert has_native_points(points)
    assert not has_native_points(points.double())
    assert not has_native_points(points.to("meta"))
    assert not has_native_points(points, map_)
    assert not has_native_points(points, channels=48)
    with torch.no_grad():
        assert has_native_points(points, map_, channels=64)


def test_wrong_arguments() -> None:
    pixels, points = torch.ones(2, 2, 32), torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"expected pixels \(H, W, C\) of float32 or bfloat16 on the CPU"):
        sample_pixels(pixels.double(), points)
    with pytest.raises(RuntimeError, match="C a multiple of 32"):
        sample_pixels(pixels[..., :8], points)
    with pytest.raises(RuntimeError, match=r"expected float32 \(x, y\) in 2 dimensions"):
        sample_pixels(pixels, points[None])
    with pytest.raises(RuntimeError, match="a map of 0 x 2 pixels cannot be sampled"):
        sample_pixels(pixels[:0], points)
    with pytest.raises(RuntimeError, match="a map of 1 x 2147483647 pixels cannot be sampled"):
        sample_pixels(torch.ones(1, 2**31 - 1, 0), points)
    maps, index, one = torch.ones(2, 2, 2, dtype=torch.uint8), torch.tensor([1]), torch.ones(1, dtype=torch.int32)
    points = points[None, None]
    with pytest.raises(RuntimeError, match=r"expected maps \(T, H, W\) of uint8 or int32"):
        sample_masks(maps.bool(), index, one, points)
    with pytest.raises(RuntimeError, match="the number of its map, int64"):
        sample_masks(maps, index, one.long(), points)
    with pytest.raises(RuntimeError, match="a mask's map is not among 2"):
        sample_masks(maps, index + 1, one, points)
    with pytest.raises(RuntimeError, match=r"expected points \(L, 1 or 1, P, 2\), not 2 rows"):
        sample_masks(maps, index, one, points.expand(1, 2, 3, 2))
    with pytest.raises(RuntimeError, match=r"expected logits \(R, H, W\) of float32"):
        most_uncertain(maps, points[0], 1)
    with pytest.raises(RuntimeError, match=r"expected candidates \(2, C, 2\), at least as many as the 4"):
        most_uncertain(maps.float(), points[0].expand(2, 3, 2), 4)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls = make_calls()
    program = "results.extend(getattr(operators, name)(*arguments) for name, arguments in calls)"
    named = [(operator.name().split("::")[1], arguments) for operator, arguments in calls]
    for result, (operator, arguments) in zip(
        run_with_instructions(capability, program, named, tmp_path), calls, strict=True
    ):
        expected = operator(*arguments)
        if operator is torch.ops.mask2former.most_uncertain.default:  # rounding decides between two
            expected, result = (certainties(arguments[0], x).sort(dim=1).values for x in (expected, result))
        tolerance = TOLERANCE[torch.bfloat16 if result.dtype == torch.bfloat16 else torch.float32]
        torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
