"""Matching cost and mask losses of whole masks (Table 5), against loops over pixels."""

import math
import pickle
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.full_masks import loss_pixels, matching_pixels
from mask2former.modeling.matcher import HungarianMatcher

HEIGHT, WIDTH, FACTOR = 3, 4, 4


def _target(count: int, with_void: bool) -> dict[str, Any]:
    size = (HEIGHT * FACTOR, WIDTH * FACTOR)
    target: dict[str, Any] = {"labels": torch.randint(0, 3, (count,)), "masks": torch.rand(count, *size) > 0.5}
    if with_void:
        target["ignore_mask"] = torch.rand(size) > 0.7
    return target


def _losses_of_a_pair(logits: list[float], wanted: list[float]) -> tuple[float, float]:
    """Mean binary cross-entropy, and dice loss, over pixels that count."""
    probabilities = [1 / (1 + math.exp(-x)) for x in logits]
    cross_entropy = [-math.log(p if t else 1 - p) for p, t in zip(probabilities, wanted, strict=True)]
    overlap = sum(p * t for p, t in zip(probabilities, wanted, strict=True))
    return sum(cross_entropy) / len(wanted), 1 - (2 * overlap + 1) / (sum(probabilities) + sum(wanted) + 1)


def _enlarge(x: Tensor, row: int, column: int) -> float:
    """Bilinear value of x (H, W), the border repeated, at a pixel of the image FACTOR times as large."""
    r = min(max((row + 0.5) / FACTOR - 0.5, 0), HEIGHT - 1)
    c = min(max((column + 0.5) / FACTOR - 0.5, 0), WIDTH - 1)
    total = 0.0
    for i in (math.floor(r), math.floor(r) + 1):
        for j in (math.floor(c), math.floor(c) + 1):
            if i < HEIGHT and j < WIDTH:
                total += (1 - abs(r - i)) * (1 - abs(c - j)) * float(x[i, j])
    return total


@pytest.mark.parametrize("with_void", [False, True])
def test_matching_cost_equals_loops(with_void: bool) -> None:
    outputs = {"pred_logits": torch.randn(1, 5, 4), "pred_masks": torch.randn(1, 5, HEIGHT, WIDTH)}
    target = _target(3, with_void)
    matcher = HungarianMatcher(2, 5, 3, compare_on="masks")
    cost = matcher.costs([outputs], [target], matcher.empty_points(1, 1, torch.device("cpu")))[0][0]
    probabilities = outputs["pred_logits"][0].softmax(-1)
    pixels = [
        (r, c)
        for r in range(HEIGHT)
        for c in range(WIDTH)
        if not (with_void and target["ignore_mask"][r * FACTOR, c * FACTOR])
    ]
    for q in range(5):
        for t in range(3):
            logits = [float(outputs["pred_masks"][0, q, r, c]) for r, c in pixels]
            wanted = [float(target["masks"][t, r * FACTOR, c * FACTOR]) for r, c in pixels]
            mask, dice = _losses_of_a_pair(logits, wanted)
            expected = -2 * float(probabilities[q, target["labels"][t]]) + 5 * mask + 3 * dice
            assert float(cost[q, t]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("with_void", [False, True])
def test_mask_losses_equal_loops(with_void: bool) -> None:
    outputs = {"pred_logits": torch.randn(2, 5, 4), "pred_masks": torch.randn(2, 5, HEIGHT, WIDTH)}
    targets = [_target(3, with_void), _target(1, False)]
    criterion = SetCriterion(3, HungarianMatcher(compare_on="masks"), {}, 0.1, compare_on="masks")
    losses = criterion(outputs, targets)
    expected_mask = expected_dice = 0.0
    for image, (queries, matched) in enumerate(criterion.matcher(outputs, targets)):
        target = targets[image]
        pixels = [
            (r, c)
            for r in range(HEIGHT * FACTOR)
            for c in range(WIDTH * FACTOR)
            if not ("ignore_mask" in target and target["ignore_mask"][r, c])
        ]
        for q, t in zip(queries, matched, strict=True):
            logits = [_enlarge(outputs["pred_masks"][image, q], r, c) for r, c in pixels]
            mask, dice = _losses_of_a_pair(logits, [float(target["masks"][t, r, c]) for r, c in pixels])
            expected_mask, expected_dice = expected_mask + mask / 4, expected_dice + dice / 4
    assert float(losses["loss_mask"]) == pytest.approx(expected_mask, abs=1e-4)
    assert float(losses["loss_dice"]) == pytest.approx(expected_dice, abs=1e-4)


def test_points_come_close_to_whole_masks() -> None:
    """Many random points estimate the same cost."""
    logits, masks = torch.randn(4, 4), torch.nn.functional.interpolate(torch.randn(1, 4, 3, 4), (24, 32))[0]
    target = {"labels": torch.tensor([0, 1]), "masks": torch.zeros(2, 48, 64, dtype=torch.bool)}
    target["masks"][0, :24], target["masks"][1, :, 30:] = True, True
    outputs = {"pred_logits": logits[None], "pred_masks": masks[None]}
    costs = [
        HungarianMatcher(2, 5, 5, compare_on=way).costs([outputs], [target], torch.rand(1, 1, 50_000, 2))[0]
        for way in ("points", "masks")
    ]
    assert (costs[0] - costs[1]).abs().max() < 0.15


def test_no_target_gives_no_rows() -> None:
    target = _target(0, True)
    logits, wanted, valid = matching_pixels(torch.randn(1, 2, HEIGHT, WIDTH), target)
    assert logits.shape == (1, 2, 12)
    assert wanted.shape == (0, 12)
    assert valid is not None
    assert valid.shape == (1, 12)
    rows = [torch.zeros(0, dtype=torch.int64)]
    assert loss_pixels(torch.randn(0, HEIGHT, WIDTH), [target], rows)[0].shape[0] == 0


@pytest.mark.parametrize("cost_on", ["points", "masks"])
@pytest.mark.parametrize("loss_on", ["points", "masks"])
def test_every_row_of_table_5_trains(tiny_cfg: CfgNode, cost_on: str, loss_on: str) -> None:
    tiny_cfg.MODEL.MASK_FORMER.MATCHING_COST_ON = cost_on
    tiny_cfg.MODEL.MASK_FORMER.MASK_LOSS_ON = loss_on
    if cost_on == "points":
        tiny_cfg.MODEL.MASK_FORMER.MATCHING_NUM_POINTS = 50
    model = build_model(tiny_cfg).train()
    assert model.criterion.matcher.num_points == (50 if cost_on == "points" else 256)
    samples = []
    for count in (2, 0):
        instances = Instances((40, 56))
        instances.gt_classes = torch.zeros(count, dtype=torch.int64)
        instances.gt_masks = torch.rand(count, 40, 56) > 0.5
        samples.append({"image": torch.rand(3, 40, 56) * 255, "instances": instances})
    losses = model(samples)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert model.sem_seg_head.predictor.mask_embed.layers[0].weight.grad.abs().max() > 0


def test_settings_that_make_no_sense(tiny_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"MATCHING_COST_ON is 'boxes'; expected one of \['masks', 'points'\]"):
        HungarianMatcher(compare_on="boxes")
    with pytest.raises(ValueError, match=r"MASK_LOSS_ON is 'boxes'; expected one of \['masks', 'points'\]"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, compare_on="boxes")
    tiny_cfg.MODEL.MASK_FORMER.MATCHING_COST_ON = "masks"
    tiny_cfg.MODEL.MASK_FORMER.MATCHING_NUM_POINTS = 10
    with pytest.raises(
        ValueError, match="MATCHING_NUM_POINTS is 10, but MATCHING_COST_ON 'masks' compares every pixel"
    ):
        build_model(tiny_cfg)


def test_a_criterion_can_be_pickled() -> None:
    """As a whole model is, to be given to another process."""
    matcher = HungarianMatcher(2, 5, 3, compare_on="masks")
    criterion = SetCriterion(3, matcher, {}, eos_coef=0.1, compare_on="masks")
    copied = pickle.loads(pickle.dumps(criterion))
    outputs = {"pred_logits": torch.randn(1, 5, 4), "pred_masks": torch.randn(1, 5, HEIGHT, WIDTH)}
    targets = [_target(3, with_void=True)]
    assert copied(outputs, targets) == criterion(outputs, targets)
