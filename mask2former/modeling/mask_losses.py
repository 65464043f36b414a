"""The two mask losses, each for pairs and for all pairs of predictions and targets (Section 3.3; DETR, Section A.2).

Pairwise forms are the matching costs. ``valid`` marks the points that count, None all of them; where no point is
valid a loss is 0.
"""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["dice_loss", "pairwise_dice_loss", "pairwise_sigmoid_ce_loss", "sigmoid_ce_loss"]


def sigmoid_ce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each mask, averaged over its points.

    Args:
        logits: (R, P).
        targets: (R, P) in 0..1.
        valid: (R, P) 0 or 1.

    Returns:
        (R,).
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if valid is None:
        return loss.mean(1)
    return (loss * valid).sum(1) / valid.sum(1).clamp(min=1)


def pairwise_sigmoid_ce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """:func:`sigmoid_ce_loss` of every prediction with every target.

    Args:
        logits: (Q, P).
        targets: (T, P) in 0..1.
        valid: (P,) 0 or 1.

    Returns:
        (Q, T).
    """
    # BCE(x, t) = softplus(x) - x t, so a matrix product and a term that does not depend on the target.
    softplus = F.softplus(logits)
    if valid is None:
        return (softplus.sum(1, keepdim=True) - logits @ targets.T) / logits.shape[1]
    return ((softplus @ valid)[:, None] - (logits * valid) @ targets.T) / valid.sum().clamp(min=1)


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
    overlap = probabilities @ targets.T
    return 1 - (2 * overlap + 1) / (probabilities.sum(1)[:, None] + targets.sum(1)[None] + 1)
