"""Losses and matching against naive loops, and where the official release fails."""

import itertools
import logging
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.mask_losses import (
    dice_loss,
    pairwise_dice_loss,
    pairwise_sigmoid_ce_loss,
    pairwise_sigmoid_focal_loss,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.point_sampling import sample_binary_masks, sample_logits, uncertain_points

NUM_CLASSES = 3


def _criterion() -> SetCriterion:
    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    return SetCriterion(NUM_CLASSES, matcher, {}, eos_coef=0.1, num_points=64)


def _outputs(queries: int, images: int = 1) -> dict[str, Tensor]:
    return {
        "pred_logits": torch.randn(images, queries, NUM_CLASSES + 1, requires_grad=True),
        "pred_masks": torch.randn(images, queries, 8, 8, requires_grad=True),
    }


def _target(count: int) -> dict[str, Any]:
    return {
        "labels": torch.randint(0, NUM_CLASSES, (count,)),
        "masks": torch.rand(count, 32, 32) > 0.5,
        "name": "a.png",
    }


@pytest.mark.parametrize("with_void", [False, True])
def test_pairwise_losses_equal_paired_ones(with_void: bool) -> None:
    logits, targets = 3 * torch.randn(4, 50), (torch.rand(3, 50) > 0.5).float()
    valid = (torch.rand(50) > 0.3).float() if with_void else None
    for paired, pairwise in (
        (sigmoid_ce_loss, pairwise_sigmoid_ce_loss),
        (sigmoid_focal_loss, pairwise_sigmoid_focal_loss),
        (dice_loss, pairwise_dice_loss),
    ):
        costs = pairwise(logits, targets, valid)
        assert costs.shape == (4, 3)
        for q, t in itertools.product(range(4), range(3)):
            row_valid = None if valid is None else valid[None]
            expected = paired(logits[q : q + 1], targets[t : t + 1], row_valid)[0]
            assert torch.isclose(costs[q, t], expected, atol=1e-5)


def test_void_points_change_nothing() -> None:
    logits, targets = torch.randn(2, 20), (torch.rand(2, 20) > 0.5).float()
    valid = torch.ones(2, 20)
    valid[:, 15:] = 0
    for loss in (sigmoid_ce_loss, sigmoid_focal_loss, dice_loss):
        assert torch.allclose(loss(logits, targets, valid), loss(logits[:, :15], targets[:, :15]))


def test_focal_loss_equals_torchvisions() -> None:
    logits, targets = 4 * torch.randn(3, 50), (torch.rand(3, 50) > 0.5).float()
    expected = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2).mean(1)
    assert torch.allclose(sigmoid_focal_loss(logits, targets), expected, atol=1e-6)
    extreme = torch.tensor([[200.0, -200.0]], requires_grad=True)
    sigmoid_focal_loss(extreme, torch.tensor([[0.0, 1.0]])).sum().backward()
    assert torch.isfinite(extreme.grad).all()


def test_focal_loss_is_used_in_matching_and_loss() -> None:
    outputs, target = _outputs(5), _target(3)
    focal = SetCriterion(NUM_CLASSES, HungarianMatcher(0, 1, 0, 64, "focal"), {}, 0.1, num_points=64, mask_loss="focal")
    torch.manual_seed(5)
    queries, matched = focal.matcher(outputs, [target])[0]
    torch.manual_seed(5)
    points = torch.rand(1, 64, 2)
    predicted = sample_logits(outputs["pred_masks"][0], points).detach()
    wanted = sample_binary_masks(target["masks"], torch.arange(3), points)
    cost = pairwise_sigmoid_focal_loss(predicted, wanted)
    best = min(sum(float(cost[q, t]) for t, q in enumerate(c)) for c in itertools.permutations(range(5), 3))
    assert float(cost[queries, matched].sum()) == pytest.approx(best, abs=1e-6)

    torch.manual_seed(6)
    losses = focal.loss_masks(outputs, [target], [(queries, matched)], torch.tensor(3.0))
    torch.manual_seed(6)
    logits = outputs["pred_masks"][0, queries]
    points = uncertain_points(logits, 64, 3.0, 0.75)
    wanted = sample_binary_masks(target["masks"], matched, points)
    expected = sigmoid_focal_loss(sample_logits(logits, points), wanted).mean()
    assert torch.isclose(losses["loss_mask"], expected)


def test_binary_samples_equal_grid_sample() -> None:
    masks, points = torch.rand(3, 7, 9) > 0.5, torch.rand(4, 30, 2)
    rows = torch.tensor([2, 0, 1, 2])
    assert torch.allclose(
        sample_binary_masks(masks, rows, points), sample_logits(masks[rows].float(), points), atol=1e-5
    )


def test_matching_is_the_best_of_all_assignments() -> None:
    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    outputs, target = _outputs(4), _target(3)
    torch.manual_seed(7)
    queries, matched = matcher(outputs, [target])[0]
    torch.manual_seed(7)
    with torch.no_grad():
        cost = matcher._cost_matrix(outputs["pred_logits"][0], outputs["pred_masks"][0], target)
    best = min(sum(float(cost[q, t]) for t, q in enumerate(choice)) for choice in itertools.permutations(range(4), 3))
    assert float(cost[queries, matched].sum()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_any_number_of_targets(count: int) -> None:
    outputs = _outputs(queries=5)
    losses = _criterion()(outputs, [_target(count)])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(x.grad).all() for x in outputs.values())
    assert (count == 0) == (losses["loss_mask"].item() == 0)


def test_class_loss_without_targets_is_no_object() -> None:
    outputs = _outputs(queries=5)
    wanted = torch.full((5,), NUM_CLASSES)
    expected = F.cross_entropy(outputs["pred_logits"][0], wanted)
    assert torch.isclose(_criterion()(outputs, [_target(0)])["loss_ce"], expected)


def test_one_pixel_mask() -> None:
    target = _target(1)
    target["masks"][:] = False
    target["masks"][0, 31, 0] = True
    assert all(torch.isfinite(value) for value in _criterion()(_outputs(5), [target]).values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_costs_name_the_image_and_training_goes_on(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    outputs = _outputs(queries=5)
    with torch.no_grad():
        outputs["pred_masks"][0, 2] = bad
    with caplog.at_level(logging.WARNING):
        queries, matched = HungarianMatcher(2, 5, 5, num_points=64)(outputs, [_target(3)])[0]
    assert "a.png" in caplog.text
    assert len(queries) == len(matched) == 3
    assert 2 not in queries.tolist()


def test_ignored_pixels_do_not_count() -> None:
    target = _target(2)
    ignore = torch.zeros(32, 32, dtype=torch.bool)
    ignore[:, 16:] = True
    changed = target | {"masks": target["masks"].clone()}
    # Bilinear samples left of the border read one column beyond it, so that column stays.
    changed["masks"][:, :, 17:] ^= True
    outputs = _outputs(5)
    losses = []
    for case in (target, changed):
        torch.manual_seed(3)
        losses.append(_criterion()(outputs, [case | {"ignore_mask": ignore}]))
    for name, value in losses[0].items():
        assert torch.isclose(value, losses[1][name], atol=1e-6), name


def test_unknown_loss_and_empty_matcher() -> None:
    with pytest.raises(ValueError, match=r"unknown losses \['boxes'\]"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, losses=["boxes"])
    with pytest.raises(ValueError, match=r"MASK_LOSS is 'l2'; expected one of \['cross_entropy', 'focal'\]"):
        HungarianMatcher(mask_loss="l2")
    with pytest.raises(ValueError, match="nothing to compare"):
        HungarianMatcher(0, 0, 0)
