"""Masks kept as one map of ids: whole tensors to those who look at them, and maps to those who move or select them."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mask2former.structures import SegmentMasks


@pytest.fixture(params=[torch.uint8, torch.int32])
def masks(request: pytest.FixtureRequest) -> SegmentMasks:
    id_map = torch.randint(0, 5, (6, 7), dtype=request.param)
    return SegmentMasks(id_map, torch.tensor([3, 1, 4], dtype=request.param))


@pytest.fixture
def expected(masks: SegmentMasks) -> Tensor:
    return torch.stack([masks.id_map == 3, masks.id_map == 1, masks.id_map == 4])


def test_it_is_a_tensor_to_everyone(masks: SegmentMasks, expected: Tensor) -> None:
    assert masks.shape == (3, 6, 7)
    assert (len(masks), masks.dim(), masks.dtype, masks.device.type) == (3, 3, torch.bool, "cpu")
    for ours, theirs in (
        (masks.float(), expected.float()),
        (masks.any(dim=2).any(dim=1), expected.any(dim=2).any(dim=1)),
        (torch.cat([masks, masks]), torch.cat([expected, expected])),
        (masks[:, 2:5], expected[:, 2:5]),
        (masks[[2, 0]], expected[[2, 0]]),
        (masks[True], expected[None]),
        (masks & masks[:1], expected & expected[:1]),
        (torch.from_numpy(masks.numpy()), expected),
        (torch.from_numpy(np.asarray(masks)), expected),
        (masks.to(torch.float16), expected.half()),
        (masks.to("cpu", torch.int64), expected.long()),
        (torch.stack(list(masks)), expected),
    ):
        assert type(ours) is Tensor
        assert torch.equal(ours, theirs)


def test_what_is_known_without_computing_it(masks: SegmentMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SegmentMasks, "full")
    assert (masks.shape, masks.size(1), len(masks), masks.dim()) == ((3, 6, 7), 6, 3, 3)
    assert (masks.dtype, masks.device.type) == (torch.bool, "cpu")


def test_a_copy_is_made_where_it_is_asked_for(masks: SegmentMasks) -> None:
    assert masks.to("cpu").id_map is masks.id_map
    assert masks.to("cpu", copy=True).id_map.data_ptr() != masks.id_map.data_ptr()


def select(index: object) -> Callable[[Tensor], Tensor]:
    return lambda masks: masks[index]  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        lambda masks: masks.to("cpu", non_blocking=True),
        lambda masks: masks.to(torch.bool),
        lambda masks: masks.to("cpu", copy=True),
        lambda masks: pickle.loads(pickle.dumps(masks)),
        select(slice(None, None, 2)),
        select(torch.tensor([2, 2, 0, 1])),
        select(torch.tensor([False, True, True])),
        select(torch.zeros(0, dtype=torch.int64)),
        lambda masks: F.pad(masks, (1, 2, 3, 4)) if type(masks) is Tensor else masks.pad((1, 2, 3, 4)),
    ],
)
def test_what_stays_a_map(masks: SegmentMasks, expected: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    changed = change(masks)
    assert isinstance(changed, SegmentMasks)
    assert torch.equal(changed.full(), change(expected))


def test_it_stays_a_map_through_instances_and_other_processes(masks: SegmentMasks, expected: Tensor) -> None:
    instances = Instances((6, 7), gt_masks=masks, gt_classes=torch.tensor([0, 1, 2]))
    loader = DataLoader([instances], batch_size=None, num_workers=1, multiprocessing_context="fork")
    (loaded,) = loader
    moved = loaded[loaded.gt_classes > 0].to("cpu")
    assert isinstance(moved.gt_masks, SegmentMasks)
    assert torch.equal(moved.gt_masks.full(), expected[1:])


def test_no_segments() -> None:
    masks = SegmentMasks(torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8))
    assert masks.shape == masks.full().shape == (0, 4, 5)
    assert list(masks) == []


def set_pixels(masks: Tensor) -> None:
    masks[:, :2] = True


@pytest.mark.parametrize(
    "change",
    [set_pixels, Tensor.logical_not_, lambda masks: torch.logical_not(torch.zeros(3, 6, 7), out=masks)],
)
def test_changes_in_place_are_not_lost(masks: SegmentMasks, change: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match=r"would change a SegmentMasks, .*Change what its method full\(\) gives"):
        change(masks)
    masks.full().logical_not_()


def test_assignment_with_an_operator_gives_an_ordinary_tensor(masks: SegmentMasks, expected: Tensor) -> None:
    void = torch.rand(6, 7) > 0.5
    masks &= ~void  # type: ignore[assignment]
    assert torch.equal(masks, expected & ~void)
