"""Targets: padded to the batch, with or without what is to be ignored."""

from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch.nn import functional as F

from mask2former.modeling.targets import prepare_targets
from mask2former.structures import SegmentMasks


def _entry(height: int, width: int, count: int) -> dict[str, Any]:
    instances = Instances((height, width))
    instances.gt_classes = torch.arange(count)
    instances.gt_masks = torch.rand(count, height, width) > 0.5
    return {"instances": instances}


def _prepare(*entries: dict[str, Any], ignore_void: bool) -> list[dict[str, Any]]:
    return prepare_targets(list(entries), (64, 64), torch.device("cpu"), ignore_void=ignore_void)


@pytest.mark.parametrize("wrap", [lambda masks: masks, BitMasks])
def test_masks_are_padded(wrap: Any) -> None:
    small, large, none = _entry(40, 30, 2), _entry(64, 64, 1), _entry(10, 64, 0)
    masks = small["instances"].gt_masks
    small["instances"].gt_masks = wrap(masks)
    targets = _prepare(small, large, none, ignore_void=False)
    assert [tuple(target["masks"].shape) for target in targets] == [(2, 64, 64), (1, 64, 64), (0, 64, 64)]
    assert torch.equal(targets[0]["masks"][:, :40, :30], masks)
    assert not targets[0]["masks"][:, 40:].any()
    assert not targets[0]["masks"][:, :, 30:].any()
    assert [target["labels"].tolist() for target in targets] == [[0, 1], [0], []]
    assert not any("ignore_mask" in target for target in targets)


def test_maps_of_segments_stay_maps() -> None:
    entry = _entry(40, 30, 2)
    segments = SegmentMasks(torch.randint(0, 3, (40, 30), dtype=torch.uint8), torch.tensor([2, 1], dtype=torch.uint8))
    entry["instances"].gt_masks = segments
    (target,) = _prepare(entry, ignore_void=True)
    assert isinstance(target["masks"], SegmentMasks)
    assert torch.equal(target["masks"].full(), F.pad(segments.full(), (0, 34, 0, 24)))
    assert target["ignore_mask"].sum() == 64 * 64 - 40 * 30


def test_void_and_padding_are_ignored_if_asked() -> None:
    small, large = _entry(40, 30, 2), _entry(64, 64, 1)
    small["ignore_mask"] = torch.zeros(40, 30, dtype=torch.bool)
    small["ignore_mask"][:5] = True
    ignored, nothing = (target["ignore_mask"] for target in _prepare(small, large, ignore_void=True))
    assert ignored[:5].all()
    assert ignored[40:].all()
    assert ignored[:, 30:].all()
    assert not ignored[5:40, :30].any()
    assert not nothing.any()


def test_names_are_for_messages() -> None:
    entries = (
        _entry(8, 8, 1),
        _entry(8, 8, 1) | {"image_id": 7},
        _entry(8, 8, 1) | {"file_name": "a.png", "image_id": 7},
    )
    assert [target["name"] for target in _prepare(*entries, ignore_void=False)] == ["(unnamed)", 7, "a.png"]
