"""The mask losses, each for pairs and for all pairs of predictions and targets (Section 4.1; DETR, Section A.2).

Pairwise forms are the matching costs. ``valid`` marks the points that count, None all of them; where no point is
valid a loss is 0.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "dice_loss",
    "find_mask_loss",
    "pairwise_dice_loss",
    "pairwise_sigmoid_ce_loss",
    "pairwise_sigmoid_focal_loss",
    "sigmoid_ce_loss",
    "sigmoid_focal_loss",
]

MaskLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# MaskFormer's: weight of foreground against background, and how much less than the others well classified points count.
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2


def sigmoid_ce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each mask, averaged over its points.

    Args:
        logits: (R, P).
        targets: (R, P) in 0..1.
        valid: (R, P) 0 or 1, float32.

    Returns:
        (R,).
    """
    return _mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), valid)


def pairwise_sigmoid_ce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """:func:`sigmoid_ce_loss` of every prediction with every target.

    Args:
        logits: (..., Q, P).
        targets: (..., T, P) in 0..1.
        valid: (..., 1, P) 0 or 1.

    Returns:
        (..., Q, T).
    """
    # BCE(x, t) = softplus(x) - x t, so a matrix product and a term that does not depend on the target.
    softplus = F.softplus(logits)
    if valid is None:
        return (softplus.sum(-1, keepdim=True) - logits @ targets.mT) / logits.shape[-1]
    return (softplus @ valid.mT - (logits * valid) @ targets.mT) / _count(valid)


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017) of each mask, averaged; arguments are as in :func:`sigmoid_ce_loss`.

    MaskFormer's loss, with its alpha and gamma. Targets between 0 and 1 weigh the losses of both classes.
    """
    foreground, background = _focal_terms(logits)
    return _mean(targets * foreground + (1 - targets) * background, valid)


def pairwise_sigmoid_focal_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """:func:`sigmoid_focal_loss` of every prediction with every target, as in :func:`pairwise_sigmoid_ce_loss`."""
    foreground, background = _focal_terms(logits)
    if valid is None:
        return (foreground @ targets.mT + background @ (1 - targets).mT) / logits.shape[-1]
    return ((foreground * valid) @ targets.mT + (background * valid) @ (1 - targets).mT) / _count(valid)


def _mean(losses: Tensor, valid: Tensor | None) -> Tensor:
    """Means (R,) of losses (R, P) over the points that count."""
    return losses.mean(1) if valid is None else (losses * valid).sum(1) / _count(valid)[:, 0]


def _count(valid: Tensor) -> Tensor:
    """How many of the points (..., P) count, at least 1: (..., 1)."""
    return valid.sum(-1, keepdim=True).clamp(min=1)


def _focal_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What each point costs if its target is 1, and if it is 0."""
    probabilities = logits.sigmoid()
    foreground = _FOCAL_ALPHA * (1 - probabilities) ** _FOCAL_GAMMA * F.softplus(-logits)
    background = (1 - _FOCAL_ALPHA) * probabilities**_FOCAL_GAMMA * F.softplus(logits)
    return foreground, background


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - (2 |A B| + 1) / (|A| + |B| + 1) of each mask; shapes as in :func:`sigmoid_ce_loss`."""
    probabilities = logits.sigmoid()
    if valid is not None:
        probabilities, targets = probabilities * valid, targets * valid
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(1) + targets.sum(1) + 1)


def pairwise_dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """:func:`dice_loss` of every prediction with every target; shapes as in :func:`pairwise_sigmoid_ce_loss`."""
    probabilities = logits.sigmoid()
    if valid is not None:
        probabilities, targets = probabilities * valid, targets * valid
    overlap = probabilities @ targets.mT
    total = probabilities.sum(-1, keepdim=True) + targets.sum(-1, keepdim=True).mT
    return 1 - (2 * overlap + 1) / (total + 1)


# By MODEL.MASK_FORMER.MASK_LOSS: the loss of pairs, and of all pairs.
_MASK_LOSSES: dict[str, tuple[MaskLoss, MaskLoss]] = {
    "cross_entropy": (sigmoid_ce_loss, pairwise_sigmoid_ce_loss),
    "focal": (sigmoid_focal_loss, pairwise_sigmoid_focal_loss),
}


def find_mask_loss(name: str) -> tuple[MaskLoss, MaskLoss]:
    """Look up the loss that stands beside the dice loss, for pairs and for all pairs.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _MASK_LOSSES:
        raise ValueError(f"MODEL.MASK_FORMER.MASK_LOSS is {name!r}; expected one of {sorted(_MASK_LOSSES)}.")
    return _MASK_LOSSES[name]
