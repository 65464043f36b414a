"""Both mask losses, paired and pairwise, against loops over points."""

import math

import pytest
import torch
import torchvision
from torch import Tensor

from mask2former.modeling.mask_losses import (
    dice_loss,
    pairwise_dice_loss,
    pairwise_sigmoid_ce_loss,
    pairwise_sigmoid_focal_loss,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)


def naive_ce(logits: list[float], targets: list[float]) -> float:
    """Mean binary cross-entropy, from its definition."""
    total = 0.0
    for logit, target in zip(logits, targets, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / max(len(logits), 1)


def naive_dice(logits: list[float], targets: list[float]) -> float:
    """One minus the smoothed Dice coefficient, from its definition."""
    overlap = total = 0.0
    for logit, target in zip(logits, targets, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        overlap += probability * target
        total += probability + target
    return 1 - (2 * overlap + 1) / (total + 1)


def naive_focal(logits: list[float], targets: list[float]) -> float:
    """Mean focal loss with alpha 1/4 and gamma 2, from its definition (Lin et al., ICCV 2017, equation 5)."""
    total = 0.0
    for logit, target in zip(logits, targets, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        cross_entropy = -(target * math.log(probability) + (1 - target) * math.log(1 - probability))
        wrong = probability * (1 - target) + (1 - probability) * target
        total += (0.25 * target + 0.75 * (1 - target)) * wrong**2 * cross_entropy
    return total / max(len(logits), 1)


LOSSES = [
    (naive_ce, sigmoid_ce_loss, pairwise_sigmoid_ce_loss),
    (naive_dice, dice_loss, pairwise_dice_loss),
    (naive_focal, sigmoid_focal_loss, pairwise_sigmoid_focal_loss),
]


def counted(values: Tensor, valid: Tensor | None) -> list[float]:
    """The values (P,) at the points that count."""
    return values.tolist() if valid is None else values[valid > 0].tolist()


@pytest.mark.parametrize("with_void", [False, True])
@pytest.mark.parametrize(("naive", "paired", "pairwise"), LOSSES)
def test_losses_equal_loops(naive, paired, pairwise, with_void: bool) -> None:
    logits, targets = 3 * torch.randn(4, 50), torch.rand(3, 50).round(decimals=1)
    if naive is naive_focal:  # MaskFormer's two forms agree where targets are 0 or 1
        targets = targets.round()
    valid = (torch.rand(50) > 0.3).float() if with_void else None
    costs = pairwise(logits, targets, None if valid is None else valid[None])
    in_layers = pairwise(logits.expand(2, -1, -1), targets.expand(2, -1, -1), None if valid is None else valid[None])
    torch.testing.assert_close(in_layers, costs.expand(2, -1, -1))
    expected = [[naive(counted(x, valid), counted(t, valid)) for t in targets] for x in logits]
    torch.testing.assert_close(costs, torch.tensor(expected), atol=1e-5, rtol=1e-5)

    each_valid = None if valid is None else valid.expand(3, -1)
    torch.testing.assert_close(paired(logits[:3], targets, each_valid), costs.diagonal(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("naive", "paired", "pairwise"), LOSSES)
def test_a_mask_without_a_valid_point_costs_nothing(naive, paired, pairwise) -> None:
    logits, targets = torch.randn(2, 9, requires_grad=True), torch.ones(2, 9)
    loss = paired(logits, targets, torch.zeros(2, 9))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert not logits.grad.any()
    assert not pairwise(logits, targets, torch.zeros(1, 9)).any()


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]])
    assert sigmoid_ce_loss(logits, torch.tensor([[0.0, 1.0]])).item() == 1e4
    assert pairwise_sigmoid_ce_loss(logits, torch.tensor([[1.0, 0.0]])).item() == 0


def test_focal_loss_equals_torchvisions() -> None:
    logits, targets = 4 * torch.randn(3, 50), (torch.rand(3, 50) > 0.5).float()
    expected = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2).mean(1)
    assert torch.allclose(sigmoid_focal_loss(logits, targets), expected, atol=1e-6)
    extreme = torch.tensor([[200.0, -200.0]], requires_grad=True)
    sigmoid_focal_loss(extreme, torch.tensor([[0.0, 1.0]])).sum().backward()
    assert torch.isfinite(extreme.grad).all()
