"""Matching costs against a loop over pairs, the assignment against all others, and where the official release fails."""

import itertools
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.matcher import HungarianMatcher

NUM_CLASSES = 3


@pytest.fixture
def matcher() -> HungarianMatcher:
    return HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=7, num_points=64)


def make_outputs(queries: int, images: int = 1) -> dict[str, Tensor]:
    return {
        "pred_logits": torch.randn(images, queries, NUM_CLASSES + 1),
        "pred_masks": 3 * torch.randn(images, queries, 8, 8),
    }


def make_target(count: int, name: str = "a.png") -> dict[str, Any]:
    return {
        "labels": torch.randint(0, NUM_CLASSES, (count,)),
        "masks": torch.rand(count, 32, 32) > 0.5,
        "name": name,
    }


def cost_of(matcher: HungarianMatcher, outputs: dict[str, Tensor], target: dict[str, Any]) -> Tensor:
    """Costs (Q, T) of a single image, at points that are drawn as in matching."""
    points = torch.rand(1, 1, matcher.num_points, 2)
    return matcher.costs([outputs], [target], points)[0][0]


def naive_cost(logits: Tensor, masks: Tensor, target: dict[str, Any], points: Tensor) -> Tensor:
    """Costs (Q, T) of the paper, one pair and one point at a time."""
    grid = 2 * points[None] - 1  # (1, 1, P, 2)
    cost = torch.zeros(len(logits), len(target["labels"]))
    for q, t in itertools.product(range(cost.shape[0]), range(cost.shape[1])):
        predicted = F.grid_sample(masks[q][None, None], grid, align_corners=False).flatten().sigmoid().tolist()
        wanted = F.grid_sample(target["masks"][t][None, None].float(), grid, align_corners=False).flatten().tolist()
        if "ignore_mask" in target:
            inside = [not target["ignore_mask"][int(y * 32), int(x * 32)] for x, y in points[0].tolist()]
            predicted, wanted = list(itertools.compress(predicted, inside)), list(itertools.compress(wanted, inside))
        ce = -sum(w * math.log(p) + (1 - w) * math.log(1 - p) for p, w in zip(predicted, wanted, strict=True))
        overlap = sum(p * w for p, w in zip(predicted, wanted, strict=True))
        dice = 1 - (2 * overlap + 1) / (sum(predicted) + sum(wanted) + 1)
        probability = logits[q].softmax(-1)[target["labels"][t]]
        cost[q, t] = -2 * probability + 5 * ce / len(predicted) + 7 * dice
    return cost


@pytest.mark.parametrize("with_void", [False, True])
def test_costs_equal_a_loop_over_pairs(matcher: HungarianMatcher, with_void: bool) -> None:
    outputs, target = make_outputs(5), make_target(3)
    if with_void:
        target["ignore_mask"] = torch.rand(32, 32) > 0.6
    torch.manual_seed(7)
    cost = cost_of(matcher, outputs, target)
    torch.manual_seed(7)
    points = torch.rand(1, 64, 2)
    expected = naive_cost(outputs["pred_logits"][0], outputs["pred_masks"][0], target, points)
    torch.testing.assert_close(cost, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("queries", "targets"), [(4, 3), (3, 3), (3, 5), (1, 4)])
def test_assignment_is_the_best_of_all(matcher: HungarianMatcher, queries: int, targets: int) -> None:
    outputs, target = make_outputs(queries), make_target(targets)
    torch.manual_seed(7)
    rows, columns = matcher(outputs, [target])[0]
    torch.manual_seed(7)
    cost = cost_of(matcher, outputs, target)
    size = min(queries, targets)
    best = min(
        sum(float(cost[q, t]) for q, t in zip(chosen_queries, chosen_targets, strict=True))
        for chosen_queries in itertools.permutations(range(queries), size)
        for chosen_targets in itertools.combinations(range(targets), size)
    )
    assert len(rows) == len(columns) == len(set(rows.tolist())) == len(set(columns.tolist())) == size
    assert float(cost[rows, columns].sum()) == pytest.approx(best, abs=1e-4)


def test_images_of_a_batch_are_matched_apart(matcher: HungarianMatcher) -> None:
    outputs, targets = make_outputs(6, images=3), [make_target(2), make_target(0), make_target(9)]
    sizes = [(len(rows), len(columns)) for rows, columns in matcher(outputs, targets)]
    assert sizes == [(2, 2), (0, 0), (6, 6)]
    assert all(index.dtype == torch.int64 for pair in matcher(outputs, targets) for index in pair)


@pytest.mark.parametrize("key", ["pred_masks", "pred_logits"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_costs_name_the_image_and_are_not_matched(
    matcher: HungarianMatcher, key: str, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    outputs, targets = make_outputs(5, images=2), [make_target(3, "good.png"), make_target(4, "bad.png")]
    outputs[key][1, 2] = bad
    outputs[key][1, 4] = bad
    with caplog.at_level(logging.WARNING):
        good, (rows, columns) = matcher(outputs, targets)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "8 of 20 matching costs of image bad.png are NaN or infinite" in message
    assert len(good[0]) == 3
    # Three sound queries for four targets: the fourth target waits.
    assert sorted(rows.tolist()) == [0, 1, 3]
    assert len(columns) == 3


def test_nothing_but_bad_costs_matches_nothing(matcher: HungarianMatcher, caplog: pytest.LogCaptureFixture) -> None:
    outputs = make_outputs(5)
    outputs["pred_masks"][:] = math.nan
    rows, columns = matcher(outputs, [make_target(3)])[0]
    assert len(rows) == len(columns) == 0
    assert "15 of 15 matching costs of image a.png" in caplog.text


def test_half_precision_is_compared_in_float32(matcher: HungarianMatcher) -> None:
    outputs, target = make_outputs(5), make_target(3)
    for name, value in outputs.items():
        outputs[name] = value.bfloat16()
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = cost_of(matcher, outputs, target)
    torch.manual_seed(7)
    full = cost_of(matcher, {name: value.float() for name, value in outputs.items()}, target)
    assert torch.equal(half, full)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare: set at least one of its weights above 0"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match=r"MATCHING_NUM_POINTS, .* is 0; masks are compared at one point or more"):
        HungarianMatcher(num_points=0)
    HungarianMatcher(num_points=0, compare_on="masks")
