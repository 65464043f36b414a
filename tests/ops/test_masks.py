"""The native operators on masks against PyTorch's resizing."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mask_cases import (
    GEOMETRIES,
    SEVERAL_BLOCKS,
    Size,
    check_binary_masks,
    check_competition,
    check_resized_masks,
    flat,
    make_masks,
)
from other_instructions import run_with_instructions
from torch import Tensor

from mask2former.ops import _library
from mask2former.ops import masks as masks_module
from mask2former.ops.masks import (
    binarise_masks,
    classify_pixels,
    compete_masks,
    has_native_masks,
    make_resizing,
    resize_masks,
)

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)

geometries = pytest.mark.parametrize("sizes", [*GEOMETRIES, *SEVERAL_BLOCKS])


@geometries
def test_resized_masks(sizes: Sequence[Size]) -> None:
    check_resized_masks(resize_masks, make_masks(sizes[0]), sizes)


@geometries
def test_binary_masks(sizes: Sequence[Size]) -> None:
    check_binary_masks(binarise_masks, make_masks(sizes[0]), sizes)


@geometries
def test_competition(sizes: Sequence[Size]) -> None:
    check_competition(compete_masks, make_masks(sizes[0]), torch.linspace(0.5, 0.9, 7), sizes)


@geometries
def test_masks_without_a_score_take_no_part(sizes: Sequence[Size]) -> None:
    scores = torch.tensor([0.0, 0.5, 0.7, -1.0, torch.nan, 0.6, 0.0])
    check_competition(compete_masks, make_masks(sizes[0]), scores, sizes)
    masks, resizing = make_masks(sizes[0])[[0, 2, 5]], make_resizing(*sizes)
    winner, inside, areas = compete_masks(masks, torch.zeros(3), resizing)
    assert not winner.any()
    assert not inside.any()
    assert areas.tolist() == [[0, 0, 0], [winner.numel(), 0, 0], [0, 0, 0]]


def test_what_is_not_a_number_wins_nothing() -> None:
    masks = make_masks((8, 10))
    masks[2, 3, 4], masks[:, 5, 6] = torch.nan, torch.nan
    resizing = make_resizing(*[(8, 10)] * 4)
    winner, inside, areas = compete_masks(masks, torch.linspace(0.5, 0.9, 7), resizing)
    assert winner[3, 4] != 2
    assert (winner[5, 6], inside[5, 6]) == (0, False)
    assert areas[1].sum() == 80
    assert not binarise_masks(masks, resizing)[0][:, 5, 6].any()


def test_the_first_of_equals_wins() -> None:
    masks = make_masks((8, 10))[[0, 0, 0]]
    winner, _, areas = compete_masks(masks, torch.full((3,), 0.7), make_resizing((8, 10), (32, 40), (32, 40), (32, 40)))
    assert not winner.any()
    assert areas[1].tolist() == [32 * 40, 0, 0]


def make_probabilities(masks: int, classes: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Eighths, whose sums are exact in any order, and often equal."""
    generator = torch.Generator().manual_seed(masks + classes)
    return tuple(torch.randint(0, 8, (masks, n), generator=generator) / 8 for n in (classes, pixels))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("masks", "classes", "pixels"), [(1, 1, 1), (7, 5, 63), (100, 133, 200), (3, 6, 64), (9, 13, 0)]
)
def test_classes_of_pixels(masks: int, classes: int, pixels: int) -> None:
    probabilities, inside = make_probabilities(masks, classes + 1, pixels)
    expected = (probabilities.T @ inside).argmax(0)
    assert torch.equal(classify_pixels(probabilities, inside), expected)
    assert torch.equal(classify_pixels(probabilities.T.contiguous().T, inside.T.contiguous().T), expected)
    without_last = (probabilities[:, :-1].T @ inside).argmax(0)
    assert torch.equal(classify_pixels(probabilities[:, :-1], inside), without_last)


def test_pixels_of_no_mask_or_of_what_is_not_a_number() -> None:
    assert not classify_pixels(torch.ones(0, 5), torch.ones(0, 70)).any()
    probabilities, inside = make_probabilities(4, 9, 70)
    inside[2, 3] = torch.nan  # of every class
    probabilities[1, [5, 7]] = torch.nan  # of every pixel
    assert torch.equal(classify_pixels(probabilities, inside), (probabilities.T @ inside).argmax(0))
    assert set(classify_pixels(probabilities, inside).tolist()) == {0, 5}
    assert classify_pixels(-torch.ones(4, 9), torch.ones(4, 3)).tolist() == [0, 0, 0]


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
    masks, scores, resizing = make_masks(sizes[0], count=30), torch.rand(30), make_resizing(*sizes)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            classes = classify_pixels(*make_probabilities(30, 40, 5000))
            results.append((*compete_masks(masks, scores, resizing), *binarise_masks(masks, resizing), classes))
    finally:
        torch.set_num_threads(threads)
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


def test_half_precision_and_strides() -> None:
    sizes = GEOMETRIES[0]
    masks, resizing = make_masks(sizes[0]), make_resizing(*sizes)
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


def test_a_cuda_graph_is_captured_without_native_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda:0"), requires_grad=False)
    monkeypatch.setattr(masks_module, "load_cuda_library", lambda _: True)
    for captured in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda captured=captured: captured)
        assert has_native_masks(on_gpu) is not captured


def test_defaults_of_pytorch_make_no_difference() -> None:
    sizes = ((3, 5), (12, 20), (11, 19), (23, 29))  # which no other test keeps
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            resizing = make_resizing(*sizes)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [x.dtype for x in flat(resizing)] == 2 * [torch.int32, torch.float32]
    check_resized_masks(resize_masks, make_masks(sizes[0]), sizes)


def test_opcheck() -> None:
    sizes = GEOMETRIES[0]
    masks, axes = make_masks(sizes[0]), flat(make_resizing(*sizes))
    operators = torch.ops.mask2former
    torch.library.opcheck(operators.resize_masks.default, (masks, *axes, 2, 9, True))
    torch.library.opcheck(operators.binarise_masks.default, (masks, *axes))
    torch.library.opcheck(operators.compete_masks.default, (masks, torch.rand(len(masks)), *axes))
    torch.library.opcheck(operators.classify_pixels.default, (torch.rand(4, 7), torch.rand(4, 90)))


def test_wrong_arguments() -> None:
    sizes = GEOMETRIES[0]
    masks, resizing = make_masks(sizes[0]), make_resizing(*sizes)
    first_row, row_weights, first_column, column_weights = flat(resizing)
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
    with pytest.raises(RuntimeError, match=r"expected float32 \(Q, K\) and \(Q, pixels\)"):
        classify_pixels(torch.rand(4, 7), torch.rand(4, 9).double())
    with pytest.raises(RuntimeError, match=r"4 masks have no probabilities \(3, 7\)"):
        classify_pixels(torch.rand(3, 7), torch.rand(4, 9))
    with pytest.raises(RuntimeError, match=r"4 masks have no probabilities \(4, 0\) of at least one class"):
        classify_pixels(torch.rand(4, 0), torch.rand(4, 9))


def test_places_without_memory_for_them() -> None:
    nothing, places = torch.zeros(0, dtype=torch.int32), 2**61  # 8 bytes for each are more than can be counted
    columns, no_columns = (nothing, torch.zeros(1, 0)), (nothing, torch.zeros(places, 0))
    operator = torch.ops.mask2former.binarise_masks
    with pytest.raises(RuntimeError, match=f"takes {places} places at a time of a mask that has 4"):
        operator(torch.ones(1, 4, 4), *no_columns, *columns)
    with pytest.raises(RuntimeError, match=f"no memory for {places} numbers of 8 bytes"):
        operator(torch.ones(1, places, 0), *no_columns, *columns)


OTHER_INSTRUCTIONS = """
for masks, scores, axes, rows in calls:
    results.append(operators.resize_masks(masks, *axes, 0, rows, True))
    results.extend(operators.binarise_masks(masks, *axes))
    results.extend(operators.compete_masks(masks, scores, *axes))
    results.append(operators.classify_pixels(scores[:, None] * torch.linspace(0.1, 0.9, 20), masks.flatten(1)))
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls, expected = [], []
    for sizes in GEOMETRIES:
        masks, resizing = make_masks(sizes[0]), make_resizing(*sizes)
        scores = torch.linspace(0.5, 0.9, len(masks))
        calls.append((masks, scores, flat(resizing), sizes[-1][0]))
        expected.append(resize_masks(masks, resizing, range(sizes[-1][0]), sigmoid=True))
        expected += [*binarise_masks(masks, resizing), *compete_masks(masks, scores, resizing)]
        expected.append(classify_pixels(scores[:, None] * torch.linspace(0.1, 0.9, 20), masks.flatten(1)))
    actual_results = run_with_instructions(capability, OTHER_INSTRUCTIONS, calls, tmp_path)
    for actual, wanted in zip(actual_results, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
