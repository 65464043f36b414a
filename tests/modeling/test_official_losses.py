"""The official functions against loops over masks."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling import criterion, matcher


def test_losses_are_summed_over_masks_and_divided() -> None:
    logits, targets = torch.randn(5, 40), (torch.rand(5, 40) > 0.5).float()
    entropies = [F.binary_cross_entropy_with_logits(x, t) for x, t in zip(logits, targets, strict=True)]
    pairs = zip(logits.sigmoid(), targets, strict=True)
    dices = [1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in pairs]
    torch.testing.assert_close(criterion.sigmoid_ce_loss_jit(logits, targets, 3.0), sum(entropies) / 3.0)
    torch.testing.assert_close(criterion.dice_loss_jit(logits, targets, 3.0), sum(dices) / 3.0)
    torch.testing.assert_close(criterion.dice_loss(logits.view(5, 8, 5), targets.view(5, 8, 5), 3.0), sum(dices) / 3.0)


def test_costs_are_those_of_all_pairs() -> None:
    logits, targets = torch.randn(3, 40), (torch.rand(2, 40) > 0.5).float()
    entropies, dices = matcher.batch_sigmoid_ce_loss_jit(logits, targets), matcher.batch_dice_loss_jit(logits, targets)
    for query, target in torch.cartesian_prod(torch.arange(3), torch.arange(2)).tolist():
        pair = logits[None, query], targets[None, target]
        torch.testing.assert_close(entropies[query, target], criterion.sigmoid_ce_loss(*pair, 1))
        torch.testing.assert_close(dices[query, target], criterion.dice_loss(*pair, 1))


def test_uncertainty_is_greatest_at_zero() -> None:
    logits = torch.tensor([[[-2.0, 0.0, 1.0]]])
    assert criterion.calculate_uncertainty(logits).tolist() == [[[-2.0, 0.0, -1.0]]]
    with pytest.raises(ValueError, match=r"\(1, 2, 3\), expected \(R, 1"):
        criterion.calculate_uncertainty(torch.zeros(1, 2, 3))
