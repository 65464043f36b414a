"""The native operators on masks against PyTorch's resizing."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from other_instructions import run_with_instructions
from torch import Tensor
from torch.nn import functional as F

from mask2former.ops import _library
from mask2former.ops.masks import (
    Resizing,
    binarise_masks,
    compete_masks,
    has_native_masks,
    make_resizing,
    resize_masks,
)

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)

Size = tuple[int, int]
GEOMETRIES = [  # mask, padded image, image, output
    ((8, 10), (32, 40), (30, 33), (30, 33)),
    ((8, 10), (32, 40), (30, 33), (61, 45)),  # on to a larger output
    ((8, 10), (32, 40), (30, 33), (13, 7)),  # and to a smaller one, narrower than a vector
    ((8, 10), (8, 10), (8, 10), (8, 10)),  # nothing to do
    ((16, 70), (16, 70), (16, 70), (4, 20)),
    ((33, 20), (7, 5), (6, 5), (40, 40)),  # down and up
    ((1, 1), (4, 4), (3, 2), (5, 9)),
    ((2, 50), (8, 200), (1, 199), (1, 1)),
]
geometries = pytest.mark.parametrize("sizes", GEOMETRIES)


def _make_masks(size: Size, count: int = 7) -> Tensor:
    """Smooth, some of them empty, none of them zero anywhere."""
    coarse = 3 * torch.randn(count, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    masks = F.interpolate(coarse, size=size, mode="bicubic")[:, 0] - 0.5
    masks[1] = -4.0
    return masks


def _resize(masks: Tensor, sizes: Sequence[Size]) -> Tensor:
    """In float64."""
    _, padded, (height, width), output = sizes
    masks = F.interpolate(masks.double()[None], size=padded, mode="bilinear", align_corners=False)
    return F.interpolate(masks[:, :, :height, :width], size=output, mode="bilinear", align_corners=False)[0]


@geometries
def test_resized_masks(sizes: Sequence[Size]) -> None:
    masks, resizing = _make_masks(sizes[0]), make_resizing(*sizes)
    expected = _resize(masks, sizes)
    height = sizes[-1][0]
    assert resizing.size == sizes[-1]
    torch.testing.assert_close(resize_masks(masks, resizing, range(height)).double(), expected, rtol=0, atol=2e-5)
    rows = range(height // 3, height // 3 + (height + 1) // 2)
    actual = resize_masks(masks, resizing, rows, sigmoid=True).double()
    torch.testing.assert_close(actual, expected[:, rows.start : rows.stop].sigmoid(), rtol=0, atol=1e-5)


@geometries
def test_binary_masks(sizes: Sequence[Size]) -> None:
    masks = _make_masks(sizes[0])
    logits = _resize(masks, sizes)
    assert logits.abs().min() > 1e-6, "rounding cannot decide"
    wanted = logits > 0
    binary, areas, probabilities, boxes = binarise_masks(masks, make_resizing(*sizes))
    assert torch.equal(binary, wanted)
    assert areas.tolist() == wanted.flatten(1).sum(1).tolist()
    for index, mask in enumerate(wanted):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if not len(rows):
            assert probabilities[index] == 0
            assert boxes[index].tolist() == [0, 0, 0, 0]
            continue
        assert probabilities[index] == pytest.approx(logits[index].sigmoid()[mask].mean().item(), rel=1e-5)
        assert boxes[index].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@geometries
def test_competition(sizes: Sequence[Size]) -> None:
    masks = _make_masks(sizes[0])
    scores = torch.linspace(0.5, 0.9, len(masks))
    logits = _resize(masks, sizes)
    strengths = scores.double()[:, None, None] * logits.sigmoid()
    best = strengths.topk(2, dim=0).values
    assert (best[0] - best[1]).min() > 1e-7, "rounding cannot decide"
    wanted, own = strengths.argmax(0), logits >= 0
    winner, inside, areas = compete_masks(masks, scores, make_resizing(*sizes))
    assert torch.equal(winner.long(), wanted)
    assert torch.equal(inside, own.gather(0, wanted[None])[0])
    wins = F.one_hot(wanted, len(masks)).permute(2, 0, 1).bool()
    expected = torch.stack([own, wins, own & wins]).flatten(2).sum(2)
    assert torch.equal(areas, expected)


def test_the_first_of_equals_wins() -> None:
    masks = _make_masks((8, 10))[[0, 0, 0]]
    winner, _, areas = compete_masks(masks, torch.full((3,), 0.7), make_resizing((8, 10), (32, 40), (32, 40), (32, 40)))
    assert not winner.any()
    assert areas[1].tolist() == [32 * 40, 0, 0]


@pytest.mark.parametrize("huge", [1e4, float("inf")])
def test_huge_logits(huge: float) -> None:
    masks = torch.full((2, 4, 4), -huge)
    masks[0, :2] = huge
    resizing = make_resizing((4, 4), (4, 4), (4, 4), (4, 4))
    _, areas, probabilities, _ = binarise_masks(masks, resizing)
    assert areas.tolist() == [8, 0]
    assert probabilities.tolist() == pytest.approx([1, 0])
    assert compete_masks(masks, torch.tensor([0.6, 0.9]), resizing)[2].tolist() == [[8, 0], [16, 0], [8, 0]]


def test_threads_make_no_difference() -> None:
    sizes = ((50, 60), (200, 240), (200, 240), (200, 240))
    masks, scores, resizing = _make_masks(sizes[0], count=30), torch.rand(30), make_resizing(*sizes)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append((*compete_masks(masks, scores, resizing), *binarise_masks(masks, resizing)))
    finally:
        torch.set_num_threads(threads)
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


def test_half_precision_and_strides() -> None:
    sizes = GEOMETRIES[0]
    masks, resizing = _make_masks(sizes[0]), make_resizing(*sizes)
    half = masks.bfloat16().transpose(1, 2).contiguous().transpose(1, 2)
    assert not half.is_contiguous()
    assert torch.equal(binarise_masks(half, resizing)[0], binarise_masks(masks.bfloat16().float(), resizing)[0])


def test_what_native_operators_are_for() -> None:
    masks = torch.randn(2, 4, 4)
    assert has_native_masks(masks)
    assert not has_native_masks(masks, masks.clone().requires_grad_())
    with torch.no_grad():
        assert has_native_masks(masks.clone().requires_grad_())
    assert not has_native_masks(masks.to("meta"))


def _arguments(resizing: Resizing) -> tuple[Tensor, ...]:
    return (*resizing.rows, *resizing.columns)


def test_opcheck() -> None:
    sizes = GEOMETRIES[0]
    masks, axes = _make_masks(sizes[0]), _arguments(make_resizing(*sizes))
    operators = torch.ops.mask2former
    torch.library.opcheck(operators.resize_masks.default, (masks, *axes, 2, 9, True))
    torch.library.opcheck(operators.binarise_masks.default, (masks, *axes))
    torch.library.opcheck(operators.compete_masks.default, (masks, torch.rand(len(masks)), *axes))


def test_wrong_arguments() -> None:
    sizes = GEOMETRIES[0]
    masks, resizing = _make_masks(sizes[0]), make_resizing(*sizes)
    first_row, row_weights, first_column, column_weights = _arguments(resizing)
    operators = torch.ops.mask2former
    with pytest.raises(RuntimeError, match="must not decrease, nor leave the mask"):
        binarise_masks(masks[:, :-1], resizing)
    with pytest.raises(RuntimeError, match="must not decrease, nor leave the mask"):
        operators.binarise_masks(masks, first_row.flip(0), row_weights, first_column, column_weights)
    with pytest.raises(RuntimeError, match="int32"):
        operators.binarise_masks(masks, first_row.long(), row_weights, first_column, column_weights)
    with pytest.raises(RuntimeError, match="expected float32"):
        operators.binarise_masks(masks.double(), first_row, row_weights, first_column, column_weights)
    with pytest.raises(RuntimeError, match="rows 20 to 31 are not among 30"):
        resize_masks(masks, resizing, range(20, 31))
    with pytest.raises(RuntimeError, match="scores of at least one mask"):
        compete_masks(masks, torch.rand(3), resizing)
    with pytest.raises(RuntimeError, match="scores of at least one mask"):
        compete_masks(masks[:0], torch.rand(0), resizing)


OTHER_INSTRUCTIONS = """
for masks, scores, axes, rows in calls:
    results.append(operators.resize_masks(masks, *axes, 0, rows, True))
    results.extend(operators.binarise_masks(masks, *axes))
    results.extend(operators.compete_masks(masks, scores, *axes))
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls, expected = [], []
    for sizes in GEOMETRIES:
        masks, resizing = _make_masks(sizes[0]), make_resizing(*sizes)
        scores = torch.linspace(0.5, 0.9, len(masks))
        calls.append((masks, scores, _arguments(resizing), sizes[-1][0]))
        expected.append(resize_masks(masks, resizing, range(sizes[-1][0]), sigmoid=True))
        expected += [*binarise_masks(masks, resizing), *compete_masks(masks, scores, resizing)]
    actual_results = run_with_instructions(capability, OTHER_INSTRUCTIONS, calls, tmp_path)
    for actual, wanted in zip(actual_results, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
