"""The training loss (Section 3.3): classes of all queries, masks of the matched ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from .full_masks import loss_pixels
from .mask_losses import dice_loss, find_mask_loss
from .matcher import HungarianMatcher, Matches
from .point_sampling import draw_points, sample_binary_masks, sample_logits, sample_nearest, uncertain_points
from .query_masks import select_masks

__all__ = ["SetCriterion"]

LOSSES = ("labels", "masks")

# Matched masks (R, H, W), the targets, and of each image which targets are matched; to logits and targets (R, P), and
# which points count, (R, P) or None for all.
Comparison = Callable[[Tensor, Sequence[Mapping[str, Any]], Sequence[Tensor]], tuple[Tensor, Tensor, Tensor | None]]


class SetCriterion(nn.Module):
    """Match predictions with targets, then sum cross-entropy over queries and the mask losses over matched pairs.

    Args:
        num_classes: K, without "no object".
        matcher: the assignment.
        weight_dict: weight of each term by name; kept for the caller, terms are returned unweighted.
        eos_coef: weight of "no object" in the cross-entropy (0.1 in the paper).
        losses: of "labels" and "masks".
        num_points: points P per mask.
        oversample_ratio: see :func:`~mask2former.modeling.point_sampling.uncertain_points`.
        importance_sample_ratio: likewise.
        compare_on: "points", or "masks" for the mask losses of whole masks (Table 5).
        mask_loss: "cross_entropy", or "focal" as in MaskFormer; the dice loss comes with both.

    Raises:
        ValueError: if ``losses``, ``compare_on`` or ``mask_loss`` names what does not exist.
    """

    empty_weight: Tensor

    @configurable
    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        losses: Sequence[str] = LOSSES,
        num_points: int = 112 * 112,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        compare_on: str = "points",
        mask_loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        unknown = sorted(set(losses) - set(LOSSES))
        if unknown:
            raise ValueError(f"unknown losses {unknown}; the criterion has {list(LOSSES)}.")
        comparisons = {"points": self._at_random_points, "masks": lambda *_: loss_pixels}
        if compare_on not in comparisons:
            raise ValueError(
                f"MODEL.MASK_FORMER.MASK_LOSS_ON is {compare_on!r}; expected one of {sorted(comparisons)}."
            )
        self.make_comparison = comparisons[compare_on]
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.losses = list(losses)
        self.mask_loss = find_mask_loss(mask_loss)[0]
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)
        self.register_load_state_dict_pre_hook(_fill_in_empty_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int) -> dict[str, Any]:
        """Read the weights of the terms and how masks are compared, in the matching and in the loss."""
        mask_former = cfg.MODEL.MASK_FORMER
        weights = {
            "loss_ce": mask_former.CLASS_WEIGHT,
            "loss_mask": mask_former.MASK_WEIGHT,
            "loss_dice": mask_former.DICE_WEIGHT,
        }
        auxiliary = range(mask_former.DEC_LAYERS - 1 if mask_former.DEEP_SUPERVISION else 0)
        return {
            "num_classes": num_classes,
            "matcher": HungarianMatcher(cfg),
            "weight_dict": weights | {f"{name}_{i}": w for i in auxiliary for name, w in weights.items()},
            "eos_coef": mask_former.NO_OBJECT_WEIGHT,
            "num_points": mask_former.TRAIN_NUM_POINTS,
            "oversample_ratio": mask_former.OVERSAMPLE_RATIO,
            "importance_sample_ratio": mask_former.IMPORTANCE_SAMPLE_RATIO,
            "compare_on": mask_former.MASK_LOSS_ON,
            "mask_loss": mask_former.MASK_LOSS,
        }

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Compute the unweighted terms.

        Args:
            outputs: a decoder's ``pred_logits``, ``pred_masks`` and, for deep supervision, ``aux_outputs``.
            targets: for each image ``labels`` (T,) int64, ``masks`` (T, H, W) bool over the area of ``pred_masks``, and
                optionally ``ignore_mask`` (H, W) bool and ``name`` as in :class:`HungarianMatcher`. T may be 0, or more
                than there are queries; then the worst matching targets have no query.

        Returns:
            ``loss_ce``, ``loss_mask`` and ``loss_dice``, and the same with ``_0``, ``_1``, ... for auxiliary outputs.
        """
        predictions = [outputs, *outputs.get("aux_outputs", [])]
        suffixes = ["", *(f"_{index}" for index in range(len(predictions) - 1))]
        num_masks = self._mean_number_of_masks(targets, outputs["pred_logits"].device)
        costs, comparisons = [], []
        for prediction in predictions:  # in the order in which the official release draws its random numbers
            costs.append(self.matcher.costs(prediction, targets))
            comparisons.append(self.make_comparison(sum(min(cost.shape) for cost in costs[-1]), num_masks.device))
        matches = _to_device(self.matcher.assign(costs, targets), num_masks.device)
        matched_masks = select_masks(
            [prediction["pred_masks"] for prediction in predictions],
            [[queries for queries, _ in pairs] for pairs in matches],
        )
        losses: dict[str, Tensor] = {}
        for suffix, prediction, masks, pairs, compare in zip(
            suffixes, predictions, matched_masks, matches, comparisons, strict=True
        ):
            terms: dict[str, Tensor] = {}
            if "labels" in self.losses:
                terms |= self.loss_labels(prediction["pred_logits"], targets, pairs)
            if "masks" in self.losses:
                terms |= self.loss_masks(masks, targets, [matched for _, matched in pairs], num_masks, compare)
            losses |= {name + suffix: value for name, value in terms.items()}
        return losses

    def loss_labels(self, logits: Tensor, targets: Sequence[Mapping[str, Any]], matches: Matches) -> dict[str, Tensor]:
        """Cross-entropy of all queries (N, Q, K + 1); those without a target should say "no object"."""
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)  # (N, Q)
        for row, target, (queries, matched) in zip(classes, targets, matches, strict=True):
            row[queries] = target["labels"][matched]
        return {"loss_ce": F.cross_entropy(logits.float().transpose(1, 2), classes, self.empty_weight)}

    def loss_masks(
        self,
        masks: Tensor,
        targets: Sequence[Mapping[str, Any]],
        rows: Sequence[Tensor],
        num_masks: Tensor,
        compare: Comparison,
    ) -> dict[str, Tensor]:
        """Binary cross-entropy (or focal loss) and dice loss of matched masks, at points or everywhere.

        Args:
            masks: logits (R, H, W) of all images' matched queries.
            targets: of each image.
            rows: of each image, which of its targets they are matched with, (R_i,) int64.
            num_masks: what sums are divided by.
            compare: the first three to logits and targets at points, (R, P) each, and which points count.
        """
        if len(masks) == 0:
            # The sum of nothing keeps every parameter in the graph, which DistributedDataParallel needs.
            zero = masks.sum()
            return {"loss_mask": zero, "loss_dice": zero}

        logits, wanted, valid = compare(masks, targets, rows)  # (R, P) each
        return {
            "loss_mask": self.mask_loss(logits, wanted, valid).sum() / num_masks,
            "loss_dice": dice_loss(logits, wanted, valid).sum() / num_masks,
        }

    def _at_random_points(self, max_rows: int, device: torch.device) -> Comparison:
        """Draw points for that many matched masks at most, to compare masks and targets there."""
        candidates, uniform = draw_points(
            max_rows, self.num_points, self.oversample_ratio, self.importance_sample_ratio, device
        )

        def compare(
            masks: Tensor, targets: Sequence[Mapping[str, Any]], rows: Sequence[Tensor]
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            count = len(masks)
            points = uncertain_points(masks, candidates[:count], uniform[:count], self.num_points)
            return sample_logits(masks, points), *_sample_targets(targets, rows, points)

        return compare

    @staticmethod
    def _mean_number_of_masks(targets: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Targets per process, at least 1: gradients are averaged over processes, so sums must be divided by a mean."""
        # Filled there, not copied there, which would wait for all that the device has to do before.
        count = torch.full((), float(sum(len(target["labels"]) for target in targets)), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)


def _to_device(matches: Sequence[Matches], device: torch.device) -> list[Matches]:
    """Move all indices in one copy, which nothing waits for."""
    indices = [index for of_prediction in matches for pair in of_prediction for index in pair]
    moved = iter(torch.cat(indices).to(device, non_blocking=True).split([len(index) for index in indices]))
    return [[(next(moved), next(moved)) for _ in of_prediction] for of_prediction in matches]


def _sample_targets(
    targets: Sequence[Mapping[str, Any]], rows: Sequence[Tensor], points: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Matched target masks (R, P) at points (R, P, 2), and which points count."""
    wanted, valid = [], []
    points_by_image = points.split([len(matched) for matched in rows])
    for target, matched, image_points in zip(targets, rows, points_by_image, strict=True):
        wanted.append(sample_binary_masks(target["masks"], matched, image_points))
        if "ignore_mask" in target:
            valid.append(~sample_nearest(target["ignore_mask"], image_points))
        else:
            valid.append(torch.ones_like(wanted[-1], dtype=torch.bool))
    counts = torch.cat(valid).float() if any("ignore_mask" in target for target in targets) else None
    return torch.cat(wanted), counts


def _fill_in_empty_weight(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    # A setting, not learnt: checkpoints made for inference leave it out.
    state_dict.setdefault(prefix + "empty_weight", module.get_buffer("empty_weight"))
