"""Bipartite matching of predictions and targets (Section 3.3; DETR, equation 1)."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .mask_losses import find_mask_loss, pairwise_dice_loss
from .point_sampling import sample_binary_masks, sample_logits, sample_nearest

__all__ = ["HungarianMatcher"]

logger = logging.getLogger(__name__)

# Stands in for NaN and infinity in the costs: far above any real one, and small enough for exact sums.
_NEVER = 1e6


class HungarianMatcher(nn.Module):
    """Assign at most one query to each target, and at most one target to each query, at the least total cost.

    Args:
        cost_class: weight of the class cost, minus the probability of the target's class.
        cost_mask: weight of the binary cross-entropy, or other ``mask_loss``, of the masks.
        cost_dice: weight of the dice loss of the masks.
        num_points: points at which masks are compared, drawn uniformly and the same for all pairs of an image.
        mask_loss: "cross_entropy" or "focal", as in the criterion.

    Raises:
        ValueError: if all weights are 0, or ``mask_loss`` is unknown.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 112 * 112,
        mask_loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("the matcher has nothing to compare: set at least one of its weights above 0.")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points
        self.pairwise_mask_loss = find_mask_loss(mask_loss)[1]

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        """Match the images of a batch.

        Args:
            outputs: ``pred_logits`` (N, Q, K + 1) and ``pred_masks`` (N, Q, H, W) logits.
            targets: for each image ``labels`` (T,) int64, ``masks`` (T, H', W') bool over the same area, and optionally
                ``ignore_mask`` (H', W') bool, pixels left out, and ``name``, for messages.

        Returns:
            For each image the indices of matched queries and targets, two int64 tensors on the CPU of length min(Q, T).
        """
        indices = []
        for logits, masks, target in zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True):
            cost = self._cost_matrix(logits, masks, target).cpu().numpy()
            if not np.isfinite(cost).all():
                logger.warning(
                    "%d of %d matching costs of image %s are NaN or infinite; those pairs are matched last. If the "
                    "loss is not finite either, lower SOLVER.BASE_LR or train without SOLVER.AMP.",
                    np.count_nonzero(~np.isfinite(cost)),
                    cost.size,
                    target.get("name", "(unnamed)"),
                )
                cost = np.nan_to_num(cost, nan=_NEVER, posinf=_NEVER, neginf=-_NEVER)
            queries, matched = linear_sum_assignment(cost)
            indices.append((torch.from_numpy(queries), torch.from_numpy(matched)))
        return indices

    def _cost_matrix(self, logits: Tensor, masks: Tensor, target: dict[str, Any]) -> Tensor:
        """(Q, T) float32."""
        # Minus the probability, where the loss has minus its logarithm: bounded, like the mask costs.
        class_cost = -logits.float().softmax(-1)[:, target["labels"]]

        points = torch.rand(1, self.num_points, 2, device=masks.device)
        predicted = sample_logits(masks, points)  # (Q, P)
        rows = torch.arange(len(target["labels"]), device=masks.device)
        wanted = sample_binary_masks(target["masks"], rows, points)  # (T, P)
        valid = None
        if "ignore_mask" in target:
            valid = (~sample_nearest(target["ignore_mask"], points[0])).float()
        with torch.autocast(masks.device.type, enabled=False):
            mask_cost = self.pairwise_mask_loss(predicted, wanted, valid)
            dice_cost = pairwise_dice_loss(predicted, wanted, valid)
        return self.cost_class * class_cost + self.cost_mask * mask_cost + self.cost_dice * dice_cost
