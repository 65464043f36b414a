"""The losses as the official release defines them, for criteria and matchers that were written with its functions."""

from torch import Tensor

from .mask_losses import dice_loss as dice_of_each
from .mask_losses import pairwise_dice_loss, pairwise_sigmoid_ce_loss
from .mask_losses import sigmoid_ce_loss as sigmoid_ce_of_each

__all__ = [
    "batch_dice_loss",
    "batch_dice_loss_jit",
    "batch_sigmoid_ce_loss",
    "batch_sigmoid_ce_loss_jit",
    "calculate_uncertainty",
    "dice_loss",
    "dice_loss_jit",
    "sigmoid_ce_loss",
    "sigmoid_ce_loss_jit",
]


def dice_loss(inputs: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """The dice losses of logits and targets (R, ...), summed and divided by ``num_masks``."""
    return dice_of_each(inputs.flatten(1), targets.flatten(1)).sum() / num_masks


def sigmoid_ce_loss(inputs: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """The mean binary cross-entropies of logits and targets (R, ...), summed and divided by ``num_masks``."""
    return sigmoid_ce_of_each(inputs.flatten(1), targets.flatten(1)).sum() / num_masks


def batch_dice_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """The dice loss (Q, T) of all logits (Q, ...) with all targets (T, ...)."""
    return pairwise_dice_loss(inputs.flatten(1), targets.flatten(1))


def batch_sigmoid_ce_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean binary cross-entropy (Q, T) of all logits (Q, P) with all targets (T, P)."""
    return pairwise_sigmoid_ce_loss(inputs, targets)


def calculate_uncertainty(logits: Tensor) -> Tensor:
    """How uncertain the logits (R, 1, ...) of binary masks are: the closer to 0, the more."""
    if logits.shape[1] != 1:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected (R, 1, ...), one mask in each row.")
    return -logits.abs()


# TorchScript, which the official release compiles them with, makes no difference to results.
dice_loss_jit, sigmoid_ce_loss_jit = dice_loss, sigmoid_ce_loss
batch_dice_loss_jit, batch_sigmoid_ce_loss_jit = batch_dice_loss, batch_sigmoid_ce_loss
