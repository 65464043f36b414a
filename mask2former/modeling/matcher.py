"""Bipartite matching of predictions and targets (Section 3.3; DETR, equation 1)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .full_masks import matching_pixels
from .mask_losses import find_mask_loss, pairwise_dice_loss
from .official_losses import batch_dice_loss, batch_dice_loss_jit, batch_sigmoid_ce_loss, batch_sigmoid_ce_loss_jit
from .point_sampling import sample_binary_masks, sample_logits, sample_nearest
from .query_masks import group_layers, masks_by_image

__all__ = [
    "HungarianMatcher",
    "Matches",
    # Which is where the official release has them.
    "batch_dice_loss",
    "batch_dice_loss_jit",
    "batch_sigmoid_ce_loss",
    "batch_sigmoid_ce_loss_jit",
]

logger = logging.getLogger(__name__)

Matches = Sequence[tuple[Tensor, Tensor]]
"""For each image the indices of matched queries and targets, (R_i,) int64 each."""

# Stands in for NaN and infinity while pairs are chosen: far above any real cost, and small enough for exact sums.
_NEVER = 1e6


class HungarianMatcher(nn.Module):
    """Assign at most one query to each target, and at most one target to each query, at the least total cost.

    Args:
        cost_class: weight of the class cost, minus the probability of the target's class.
        cost_mask: weight of the binary cross-entropy, or other ``mask_loss``, of the masks.
        cost_dice: weight of the dice loss of the masks.
        num_points: points at which masks are compared, drawn uniformly and the same for all pairs of an image.
        compare_on: "points", or "masks" to compare whole masks (Table 5).
        mask_loss: "cross_entropy" or "focal", as in the criterion.

    Raises:
        ValueError: if all weights are 0, there are no points, or ``compare_on`` or ``mask_loss`` names what does not
            exist.
    """

    @configurable
    def __init__(
        self,
        cost_class: float = 1,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 112 * 112,
        compare_on: str = "points",
        mask_loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        comparisons = {"points": _sample_points, "masks": _take_pixels}
        if compare_on not in comparisons:
            raise ValueError(
                f"MODEL.MASK_FORMER.MATCHING_COST_ON is {compare_on!r}; expected one of {sorted(comparisons)}."
            )
        if compare_on == "points" and num_points < 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.MATCHING_NUM_POINTS, or TRAIN_NUM_POINTS in its place, is {num_points}; masks are "
                "compared at one point or more."
            )
        self.compare_on = compare_on
        self.compare = comparisons[compare_on]
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("the matcher has nothing to compare: set at least one of its weights above 0.")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points
        self.pairwise_mask_loss = find_mask_loss(mask_loss)[1]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the weights, which are the loss's, and how masks are compared."""
        mask_former = cfg.MODEL.MASK_FORMER
        num_points = mask_former.MATCHING_NUM_POINTS
        if mask_former.MATCHING_COST_ON == "masks" and num_points is not None:
            raise ValueError(
                f"MODEL.MASK_FORMER.MATCHING_NUM_POINTS is {num_points}, but MATCHING_COST_ON 'masks' compares every "
                "pixel; leave the number out, or match on 'points'."
            )
        return {
            "cost_class": mask_former.CLASS_WEIGHT,
            "cost_mask": mask_former.MASK_WEIGHT,
            "cost_dice": mask_former.DICE_WEIGHT,
            "num_points": mask_former.TRAIN_NUM_POINTS if num_points is None else num_points,
            "compare_on": mask_former.MATCHING_COST_ON,
            "mask_loss": mask_former.MASK_LOSS,
        }

    def forward(self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Any]]) -> Matches:
        """Match the images of a batch.

        Args:
            outputs: ``pred_logits`` (N, Q, K + 1) and ``pred_masks`` (N, Q, H, W) logits.
            targets: for each image ``labels`` (T,) int64, ``masks`` (T, H', W') bool over the same area, and optionally
                ``ignore_mask`` (H', W') bool, pixels left out, and ``name``, for messages.

        Returns:
            For each image the indices of matched queries and targets, two int64 tensors on the CPU of length min(Q, T);
            shorter where only pairs would be left whose cost is NaN or infinite, which are never matched.
        """
        return self.memory_efficient_forward(outputs, targets)

    def memory_efficient_forward(self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Any]]) -> Matches:
        """:meth:`forward`, as the official release calls it."""
        points = self.empty_points(1, len(targets), outputs["pred_masks"].device)
        for of_image in points[0]:
            of_image.uniform_()
        return self.assign(self.costs([outputs], targets, points), targets)[0]

    def empty_points(self, layers: int, images: int, device: torch.device) -> Tensor:
        """Room for the random points at which masks are compared, (layers, images, P, 2); P is 0 for whole masks."""
        return torch.empty(layers, images, self.num_points if self.compare_on == "points" else 0, 2, device=device)

    @torch.no_grad()
    def costs(
        self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Any]], points: Tensor
    ) -> list[Tensor]:
        """Matching costs of each image.

        Args:
            predictions: of each layer what :meth:`forward` takes.
            targets: likewise.
            points: (L, N, P, 2) in 0..1, where the masks of each layer and image are compared.

        Returns:
            (L, Q, T_i) float32 on the device of the predictions.
        """
        class_logits = torch.stack([prediction["pred_logits"] for prediction in predictions], dim=1)  # (N, L, Q, K + 1)
        masks = masks_by_image([prediction["pred_masks"] for prediction in predictions])
        groups = group_layers(len(predictions), self.compare_on, points.device)
        return [
            torch.cat([self._costs_of_image(logits[group], of_image[group], target, where[group]) for group in groups])
            for logits, of_image, target, where in zip(class_logits, masks, targets, points.unbind(1), strict=True)
        ]

    @staticmethod
    def assign(costs: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> list[Matches]:
        """For the costs (L, Q, T_i) of each image, what :meth:`forward` gives for each layer. Waits for a GPU once."""
        on_cpu = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
        by_image = [
            [_best_pairs(of_layer, target) for of_layer in flat.view(cost.shape).numpy()]
            for flat, cost, target in zip(on_cpu, costs, targets, strict=True)
        ]
        return list(zip(*by_image, strict=True))

    def _costs_of_image(
        self, logits: Tensor, masks: Tensor | Sequence[Tensor], target: Mapping[str, Any], points: Tensor
    ) -> Tensor:
        """(L, Q, T) float32 of classes (L, Q, K + 1) and masks (L, Q, H, W) at points (L, P, 2)."""
        # Minus the probability, where the loss has minus its logarithm: bounded, like the mask costs.
        class_cost = -logits.float().softmax(-1)[..., target["labels"]]

        predicted, wanted, valid = self.compare(masks, target, points)
        with torch.autocast(points.device.type, enabled=False):
            mask_cost = self.pairwise_mask_loss(predicted, wanted, valid)
            dice_cost = pairwise_dice_loss(predicted, wanted, valid)
        return self.cost_class * class_cost + self.cost_mask * mask_cost + self.cost_dice * dice_cost


def _sample_points(
    masks: Tensor | Sequence[Tensor], target: Mapping[str, Any], points: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Predictions (L, Q, P) and targets (L, T, P) at the same points (L, P, 2), and which count, (L, 1, P)."""
    rows = torch.arange(len(target["labels"]), device=points.device)
    wanted = sample_binary_masks(target["masks"], rows, points[:, None])
    valid = (~sample_nearest(target["ignore_mask"], points[:, None])).float() if "ignore_mask" in target else None
    return sample_logits(masks, points), wanted, valid


def _take_pixels(
    masks: Tensor | Sequence[Tensor], target: Mapping[str, Any], _: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As :func:`_sample_points`, with every pixel a point (Table 5)."""
    return matching_pixels(masks, target)


def _best_pairs(cost: np.ndarray, target: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The best pairs of costs (Q, T)."""
    finite = np.isfinite(cost)
    if not finite.all():
        logger.warning(
            "%d of %d matching costs of image %s are NaN or infinite; those pairs are not matched. If this "
            "happens often, lower SOLVER.BASE_LR or train without SOLVER.AMP.",
            np.count_nonzero(~finite),
            cost.size,
            target.get("name", "(unnamed)"),
        )
    queries, matched = linear_sum_assignment(np.where(finite, cost, _NEVER))
    possible = finite[queries, matched]
    return torch.from_numpy(queries[possible]), torch.from_numpy(matched[possible])
