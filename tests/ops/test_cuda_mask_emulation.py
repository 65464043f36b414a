"""The CUDA operators on masks, run on the CPU as those of test_cuda_emulation.py, against PyTorch's resizing."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from emulated import guarded
from mask_cases import (
    GEOMETRIES,
    SEVERAL_BLOCKS,
    Size,
    check_binary_masks,
    check_competition,
    check_extreme_logits,
    check_resized_masks,
    flat,
    make_masks,
)
from torch import Tensor

from mask2former.ops._library import load_library
from mask2former.ops.masks import Axis, Resizing, make_resizing

pytestmark = [pytest.mark.usefixtures("emulation"), pytest.mark.timeout(1200)]  # the fixture compiles

geometries = pytest.mark.parametrize("sizes", [*GEOMETRIES, *SEVERAL_BLOCKS])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@pytest.fixture
def order(request: pytest.FixtureRequest, backwards: Callable[[], object]) -> str:
    if request.param == "backwards":
        backwards()
    return str(request.param)


def run(name: str, masks: Tensor, resizing: Resizing, *others: Any, scores: Sequence[Tensor] = ()) -> Any:
    """An emulated operator, whose inputs have NaNs around them."""
    tensors = [guarded(x) for x in (masks, *scores, *flat(resizing))]
    return getattr(torch.ops.mask2former_emulation, name)(*tensors, *others)


def resize(masks: Tensor, resizing: Resizing, rows: range, *, sigmoid: bool) -> Tensor:
    result: Tensor = run("resize_masks", masks, resizing, rows.start, rows.stop, sigmoid)
    return result


def binarise(masks: Tensor, resizing: Resizing) -> list[Tensor]:
    return list(run("binarise_masks", masks, resizing))


def compete(masks: Tensor, scores: Tensor, resizing: Resizing) -> list[Tensor]:
    return list(run("compete_masks", masks, resizing, scores=[scores]))


@geometries
@dtypes
def test_resized_masks(sizes: Sequence[Size], dtype: torch.dtype) -> None:
    check_resized_masks(resize, make_masks(sizes[0]).to(dtype), sizes)


@pytest.mark.parametrize("order", ["forwards", "backwards"], indirect=True)
@geometries
@dtypes
def test_binary_masks(sizes: Sequence[Size], dtype: torch.dtype, order: str) -> None:
    check_binary_masks(binarise, make_masks(sizes[0]).to(dtype), sizes)


@pytest.mark.parametrize("order", ["forwards", "backwards"], indirect=True)
@geometries
@dtypes
def test_competition(sizes: Sequence[Size], dtype: torch.dtype, order: str) -> None:
    check_competition(compete, make_masks(sizes[0]).to(dtype), torch.linspace(0.5, 0.9, 7), sizes)


@geometries
def test_masks_without_a_score_take_no_part(sizes: Sequence[Size]) -> None:
    scores = torch.tensor([0.0, 0.5, 0.7, -1.0, torch.nan, 0.6, 0.0])
    check_competition(compete, make_masks(sizes[0]), scores, sizes)
    winner, inside, areas = compete(make_masks(sizes[0])[[0, 2, 5]], torch.zeros(3), make_resizing(*sizes))
    assert not winner.any()
    assert not inside.any()
    assert areas.tolist() == [[0, 0, 0], [winner.numel(), 0, 0], [0, 0, 0]]


def test_the_first_of_equals_wins() -> None:
    resizing = make_resizing((8, 10), (32, 40), (32, 40), (32, 40))
    winner, _, areas = compete(make_masks((8, 10))[[0, 0, 0]], torch.full((3,), 0.7), resizing)
    assert not winner.any()
    assert areas[1].tolist() == [32 * 40, 0, 0]


def test_noise_is_counted_too() -> None:
    """Where neighbours are won by different masks, every pixel is still counted once."""
    masks = torch.randn(40, 16, 37, generator=torch.Generator().manual_seed(1))
    sizes = [(16, 37)] * 4
    check_competition(compete, masks, torch.linspace(0.5, 0.9, 40), sizes)
    check_binary_masks(binarise, masks, sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("wrong", [1e4, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("sizes", [GEOMETRIES[1], GEOMETRIES[6], [(8, 10)] * 4])
def test_extreme_logits_are_as_on_the_cpu(sizes: Sequence[Size], wrong: float, dtype: torch.dtype) -> None:
    if not load_library():
        pytest.skip("the native library is not built (python -m mask2former.ops.build)")
    check_extreme_logits(binarise, compete, make_masks(sizes[0]).to(dtype), sizes, wrong)


def test_the_order_makes_no_difference(backwards: Callable[[], object]) -> None:
    sizes = SEVERAL_BLOCKS[0]
    masks, scores, resizing = make_masks(sizes[0]), torch.rand(7), make_resizing(*sizes)
    first = [*binarise(masks, resizing), *compete(masks, scores, resizing)]
    backwards()
    assert all(map(torch.equal, [*binarise(masks, resizing), *compete(masks, scores, resizing)], first))


def test_no_index_leaves_a_mask() -> None:
    """Unlike on the CPU they are not looked at beforehand, for which one would wait."""
    for sizes in (GEOMETRIES[1], GEOMETRIES[6]):
        rows, columns = make_resizing(*sizes)
        masks, wild = make_masks(sizes[0]), torch.tensor([-(2**31), -1, 2**31 - 1], dtype=torch.int32)
        wrong = [axis._replace(first=wild.repeat(len(axis.first))[: len(axis.first)]) for axis in (rows, columns)]
        for resizing in (Resizing(wrong[0], columns), Resizing(rows, wrong[1])):
            assert resize(masks, resizing, range(sizes[-1][0]), sigmoid=False).isfinite().all()


def test_nothing_to_do() -> None:
    resizing = make_resizing(*GEOMETRIES[0])
    masks = make_masks((8, 10))
    assert [x.shape for x in binarise(masks[:0], resizing)] == [(0, 30, 33), (0,), (0,), (0, 4)]
    assert resize(masks[:0], resizing, range(30), sigmoid=True).shape == (0, 30, 33)
    assert resize(masks, resizing, range(4, 4), sigmoid=True).shape == (7, 0, 33)
    empty = Resizing(Axis(torch.zeros(0, dtype=torch.int32), torch.zeros(1, 0)), resizing.columns)
    binary, areas, probabilities, boxes = binarise(masks, empty)
    assert binary.shape == (7, 0, 33)
    assert not torch.cat([areas, probabilities, boxes.flatten()]).any()
    assert not compete(masks, torch.rand(7), empty)[2].any()


def test_strides() -> None:
    sizes = GEOMETRIES[0]
    masks, resizing = make_masks(sizes[0]).bfloat16(), make_resizing(*sizes)
    strided = masks.transpose(1, 2).contiguous().transpose(1, 2)
    operator = torch.ops.mask2former_emulation.binarise_masks
    assert torch.equal(operator(strided, *flat(resizing))[0], operator(masks, *flat(resizing))[0])


def test_wrong_arguments() -> None:
    sizes = GEOMETRIES[0]
    masks, resizing = make_masks(sizes[0]), make_resizing(*sizes)
    first_row, row_weights, first_column, column_weights = flat(resizing)
    operators = torch.ops.mask2former_emulation
    with pytest.raises(RuntimeError, match="an axis of 2 taps must not leave the mask, which has 1"):
        operators.binarise_masks(masks[:, :1], *flat(resizing))
    with pytest.raises(RuntimeError, match="int32"):
        operators.binarise_masks(masks, first_row.long(), row_weights, first_column, column_weights)
    with pytest.raises(RuntimeError, match="masks: values must be float32, float16 or bfloat16"):
        operators.binarise_masks(masks.double(), *flat(resizing))
    with pytest.raises(RuntimeError, match=r"expected \(Q, h, w\)"):
        operators.binarise_masks(masks[0], *flat(resizing))
    with pytest.raises(RuntimeError, match="rows 20 to 31 are not among 30"):
        resize(masks, resizing, range(20, 31), sigmoid=False)
    # Nearly 2^31 pixels of one mask: the threads beyond them could not be counted.
    rows, columns = (
        (torch.zeros(size, dtype=torch.int32), torch.ones(1, size)) for size in (2 * 3 * 7 * 11 * 151, 3 * 31 * 331)
    )
    with pytest.raises(RuntimeError, match="too large for the CUDA kernels"):
        operators.resize_masks(torch.zeros(1, 1, 1), *rows, *columns, 0, 0, False)
    for count, scores in ((7, torch.rand(3)), (0, torch.rand(0)), (7, torch.rand(7).double())):
        with pytest.raises(RuntimeError, match="scores of at least one mask"):
            operators.compete_masks(masks[:count], scores, *flat(resizing))
