"""Masks of several regions, one region at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from mask2former.modeling.postprocessing import split_disconnected

K = 2


def _flood(mask: np.ndarray) -> list[np.ndarray]:
    """Regions that are connected by edges, in reading order."""
    left, regions = mask.copy(), []
    while left.any():
        todo, region = [tuple(np.argwhere(left)[0])], np.zeros_like(mask)
        while todo:
            row, column = todo.pop()
            if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and left[row, column]:
                left[row, column], region[row, column] = False, True
                todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        regions.append(region)
    return regions


@pytest.mark.parametrize("classes", [{0}, {1}, {0, 1}])
def test_parts_equal_flood_fill(classes: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, K + 1, generator=generator)
    masks = torch.randn(12, 9, 11, generator=generator) - 0.5
    masks[3] = -1  # empty
    masks[4] = 1  # connected
    masks[7] = masks[6] = masks[5]  # found by three queries
    logits[5:8] = torch.tensor([[2.0, 0, 0], [3, 0, 0], [1, 0, 0]])
    masks[8] = masks[9] = masks[5]  # and by two of the other class
    logits[8:10] = torch.tensor([[0, 2.0, 0], [0, 1, 0]])
    found_logits, found_masks = split_disconnected(logits, masks, classes=classes)
    of_class = logits[:, :K].argmax(-1).tolist()
    expected = []
    for row in range(12):
        regions = _flood((masks[row] > 0).numpy())
        if len(regions) < 2 or of_class[row] not in classes:
            expected.append((row, masks[row]))
            continue
        least = min(3, max(region.sum() for region in regions))
        for region in regions:
            if region.sum() >= least:
                outside = torch.from_numpy((masks[row] > 0).numpy() & ~region)
                expected.append((row, torch.where(outside, -masks[row], masks[row])))
    assert len(expected) > 15
    # Of masks that are the same, the most probable.
    scores = logits.softmax(-1)[:, :K].amax(-1)
    by_score = sorted(expected, key=lambda part: -scores[part[0]])
    chosen: list[tuple[int, torch.Tensor]] = []
    for row, mask in by_score:
        inside = mask > 0
        repeats = [
            (inside & (other > 0)).sum() > 0.5 * (inside | (other > 0)).sum()
            for other_row, other in chosen
            if of_class[other_row] == of_class[row] and of_class[row] in classes
        ]
        if not any(repeats):
            chosen.append((row, mask))
    assert len(chosen) < len(expected)
    wanted = [part for part in expected if any(part[1] is mask for _, mask in chosen)]
    assert torch.equal(found_logits, logits[[row for row, _ in wanted]])
    assert torch.equal(found_masks, torch.stack([mask for _, mask in wanted]))


def test_no_queries() -> None:
    logits, masks = torch.zeros(0, K + 1), torch.zeros(0, 4, 4)
    found_logits, found_masks = split_disconnected(logits, masks, classes={0, 1})
    assert found_logits.shape == (0, K + 1)
    assert found_masks.shape == (0, 4, 4)


@pytest.mark.parametrize(("switch", "tile_size", "count"), [(False, 0, 1), (True, 0, 2), (False, 64, 1), (True, 64, 2)])
def test_the_model_counts_connected_things(tiny_cfg: CfgNode, switch: bool, tile_size: int, count: int) -> None:
    """One query on two discs, with and without tiles; class scores stay the same."""
    test = tiny_cfg.MODEL.MASK_FORMER.TEST
    test.SPLIT_DISCONNECTED_THINGS, test.TILE_SIZE, test.TILE_OVERLAP = switch, tile_size, tile_size // 2
    model = build_model(tiny_cfg).eval()

    def two_discs(images: torch.Tensor) -> dict[str, torch.Tensor]:
        bright = F.avg_pool2d(images.amax(1, keepdim=True), 4) > 0
        masks = torch.where(bright, 9.0, -9.0)  # (N, 1, h, w)
        return {"pred_logits": torch.tensor([9.0, 0, 0, 0]).expand(len(images), 1, 4), "pred_masks": masks}

    model.backbone, model.sem_seg_head = nn.Identity(), Lambda(two_discs)
    image = torch.zeros(3, 64, 96)
    image[:, 8:24, 8:24] = image[:, 40:56, 60:84] = 255
    with torch.no_grad():
        result = model([{"image": image}])[0]
        model.split_disconnected_things = not switch
        other = model([{"image": image}])[0]
    assert len(result["panoptic_seg"][1]) == count
    assert (result["instances"].scores > 0.5).sum() == count
    assert result["sem_seg"].max() > 0.9
    assert torch.equal(result["sem_seg"], other["sem_seg"])


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.function(x)
