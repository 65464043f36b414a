"""The training loss against loops over pairs, and where the official release fails."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.mask_losses import pairwise_sigmoid_focal_loss, sigmoid_focal_loss
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.point_sampling import sample_binary_masks, sample_logits, uncertain_points

NUM_CLASSES = 3
TERMS = {"loss_ce", "loss_mask", "loss_dice"}


@pytest.fixture
def criterion() -> SetCriterion:
    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    return SetCriterion(NUM_CLASSES, matcher, {}, eos_coef=0.1, num_points=64)


def make_outputs(queries: int, images: int = 1) -> dict[str, Tensor]:
    return {
        "pred_logits": torch.randn(images, queries, NUM_CLASSES + 1, requires_grad=True),
        "pred_masks": torch.randn(images, queries, 8, 8, requires_grad=True),
    }


def make_target(count: int) -> dict[str, Any]:
    return {
        "labels": torch.randint(0, NUM_CLASSES, (count,)),
        "masks": torch.rand(count, 32, 32) > 0.5,
        "name": "a.png",
    }


def naive_losses(
    criterion: SetCriterion, outputs: dict[str, Tensor], targets: list[dict[str, Any]], num_masks: int
) -> dict[str, float]:
    """The three terms, a query, a mask and a point at a time; draws the random numbers that the criterion draws."""
    matches = criterion.matcher(outputs, targets)
    pairs = [
        (image, q, t)
        for image, match in enumerate(matches)
        for q, t in zip(match[0].tolist(), match[1].tolist(), strict=True)
    ]
    classes = {(image, q): int(targets[image]["labels"][t]) for image, q, t in pairs}
    total = weights = 0.0
    for image, of_queries in enumerate(outputs["pred_logits"].detach().log_softmax(-1)):
        for q, log_probabilities in enumerate(of_queries):
            wanted = classes.get((image, q), NUM_CLASSES)
            weight = 0.1 if wanted == NUM_CLASSES else 1.0
            total -= weight * float(log_probabilities[wanted])
            weights += weight

    masks = outputs["pred_masks"].detach()
    points = uncertain_points(torch.stack([masks[i, q] for i, q, _ in pairs]), 64, 3.0, 0.75)
    ce = dice = 0.0
    for (image, q, t), of_pair in zip(pairs, points, strict=True):
        grid = 2 * of_pair[None, None] - 1
        sampled = F.grid_sample(masks[image, q][None, None], grid, align_corners=False).flatten().sigmoid().tolist()
        wanted_mask = targets[image]["masks"][t][None, None].float()
        wanted_values = F.grid_sample(wanted_mask, grid, align_corners=False).flatten().tolist()
        terms = [w * math.log(p) + (1 - w) * math.log(1 - p) for p, w in zip(sampled, wanted_values, strict=True)]
        ce -= sum(terms) / len(terms)
        overlap = sum(p * w for p, w in zip(sampled, wanted_values, strict=True))
        dice += 1 - (2 * overlap + 1) / (sum(sampled) + sum(wanted_values) + 1)
    return {"loss_ce": total / weights, "loss_mask": ce / num_masks, "loss_dice": dice / num_masks}


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (9, 1)])
def test_terms_equal_loops(criterion: SetCriterion, counts: tuple[int, int]) -> None:
    outputs, targets = make_outputs(queries=5, images=2), [make_target(count) for count in counts]
    torch.manual_seed(5)
    losses = criterion(outputs, targets)
    torch.manual_seed(5)
    expected = naive_losses(criterion, outputs, targets, num_masks=sum(counts))
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_every_prediction_is_matched_and_counted_alike(criterion: SetCriterion) -> None:
    final, first, second = make_outputs(5), make_outputs(5), make_outputs(5)
    targets = [make_target(3)]
    torch.manual_seed(5)
    losses = criterion(final | {"aux_outputs": [first, second]}, targets)
    assert set(losses) == TERMS | {f"{name}_{i}" for name in TERMS for i in (0, 1)}
    torch.manual_seed(5)
    for outputs, suffix in ((final, ""), (first, "_0"), (second, "_1")):
        for name, value in criterion(outputs, targets).items():
            assert torch.equal(losses[name + suffix], value)


@pytest.mark.parametrize("counts", [(0,), (1,), (12,), (0, 0), (0, 12)])
def test_any_number_of_targets(criterion: SetCriterion, counts: tuple[int, ...]) -> None:
    outputs = make_outputs(queries=5, images=len(counts))
    losses = criterion(outputs, [make_target(count) for count in counts])
    assert set(losses) == TERMS
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(x.grad).all() for x in outputs.values())  # which also says that each has a gradient
    assert (sum(counts) == 0) == (losses["loss_mask"].item() == 0)


def test_class_loss_without_targets_is_no_object(criterion: SetCriterion) -> None:
    outputs = make_outputs(queries=5)
    expected = F.cross_entropy(outputs["pred_logits"][0], torch.full((5,), NUM_CLASSES))
    assert torch.isclose(criterion(outputs, [make_target(0)])["loss_ce"], expected)


@pytest.mark.parametrize("position", [(0, 0), (31, 0), (16, 15)])
def test_one_pixel_masks_have_a_loss_and_a_gradient(criterion: SetCriterion, position: tuple[int, int]) -> None:
    target = make_target(2)
    target["masks"][:] = False
    target["masks"][0][position] = True  # and the other mask is empty altogether
    outputs = make_outputs(5)
    losses = criterion(outputs, [target])
    sum(losses.values()).backward()
    assert all(value.isfinite() and value > 0 for value in losses.values())
    assert outputs["pred_masks"].grad.isfinite().all()


@pytest.mark.parametrize("bad_queries", [1, 4, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_masks_leave_the_losses_whole(
    criterion: SetCriterion, bad: float, bad_queries: int, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = make_outputs(5)
    with torch.no_grad():
        outputs["pred_masks"][0, :bad_queries] = bad
    losses = criterion(outputs, [make_target(3)])
    sum(losses.values()).backward()
    assert "a.png" in caplog.text
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(x.grad).all() for x in outputs.values())
    assert (losses["loss_mask"].item() == 0) == (bad_queries == 5)


def test_ignored_pixels_do_not_count(criterion: SetCriterion) -> None:
    target = make_target(2)
    ignore = torch.zeros(32, 32, dtype=torch.bool)
    ignore[:, 16:] = True
    changed = target | {"masks": target["masks"].clone()}
    # Bilinear samples left of the border read one column beyond it, so that column stays.
    changed["masks"][:, :, 17:] ^= True
    outputs = make_outputs(5)
    losses, counted = [], []
    for case in (target, changed):
        torch.manual_seed(3)
        losses.append(criterion(outputs, [case | {"ignore_mask": ignore}]))
        torch.manual_seed(3)
        counted.append(criterion(outputs, [case]))
    for name, value in losses[0].items():
        assert torch.isclose(value, losses[1][name], atol=1e-6), name
    assert not torch.isclose(counted[0]["loss_dice"], counted[1]["loss_dice"], atol=1e-3)


def test_an_image_of_nothing_but_void_has_no_mask_loss(criterion: SetCriterion) -> None:
    target = make_target(2) | {"ignore_mask": torch.ones(32, 32, dtype=torch.bool)}
    losses = criterion(make_outputs(5), [target])
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert losses["loss_ce"].isfinite()


def test_void_of_one_image_leaves_the_others_alone(criterion: SetCriterion) -> None:
    outputs, targets = make_outputs(5, images=2), [make_target(2), make_target(2)]
    void = torch.zeros(32, 32, dtype=torch.bool)
    torch.manual_seed(3)
    without = criterion(outputs, targets)
    torch.manual_seed(3)
    with_empty = criterion(outputs, [targets[0], targets[1] | {"ignore_mask": void}])
    for name, value in without.items():
        torch.testing.assert_close(with_empty[name], value)


def test_classes_alone(criterion: SetCriterion) -> None:
    only_classes = SetCriterion(NUM_CLASSES, criterion.matcher, {}, eos_coef=0.1, losses=["labels"])
    assert set(only_classes(make_outputs(5), [make_target(2)])) == {"loss_ce"}


def test_unknown_losses_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown losses \['boxes'\]; the criterion has \['labels', 'masks'\]"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, losses=["boxes"])
    with pytest.raises(ValueError, match=r"MASK_LOSS is 'l2'; expected one of \['cross_entropy', 'focal'\]"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, mask_loss="l2")


def test_focal_loss_is_used_in_matching_and_loss() -> None:
    outputs, target = make_outputs(5), make_target(3)
    matcher = HungarianMatcher(0, 1, 0, 64, mask_loss="focal")
    focal = SetCriterion(NUM_CLASSES, matcher, {}, 0.1, num_points=64, mask_loss="focal")
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
