"""The training loss (Section 3.3): classes of all queries, masks of the matched ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from .full_masks import loss_pixels
from .mask_losses import dice_loss, find_mask_loss
from .matcher import HungarianMatcher
from .point_sampling import sample_binary_masks, sample_logits, sample_nearest, uncertain_points

__all__ = ["SetCriterion"]

Matches = Sequence[tuple[Tensor, Tensor]]


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
        losses: Sequence[str] = ("labels", "masks"),
        num_points: int = 112 * 112,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        compare_on: str = "points",
        mask_loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        known = {"labels": self.loss_labels, "masks": self.loss_masks}
        unknown = sorted(set(losses) - set(known))
        if unknown:
            raise ValueError(f"unknown losses {unknown}; the criterion has {sorted(known)}.")
        comparisons = {"points": self._at_points, "masks": loss_pixels}
        if compare_on not in comparisons:
            raise ValueError(
                f"MODEL.MASK_FORMER.MASK_LOSS_ON is {compare_on!r}; expected one of {sorted(comparisons)}."
            )
        self.compare = comparisons[compare_on]
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.losses = [known[name] for name in losses]
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
        num_masks = self._mean_number_of_masks(targets, outputs["pred_logits"].device)
        losses = self._losses_of_one_prediction(outputs, targets, num_masks)
        for index, auxiliary in enumerate(outputs.get("aux_outputs", [])):
            terms = self._losses_of_one_prediction(auxiliary, targets, num_masks)
            losses.update({f"{name}_{index}": value for name, value in terms.items()})
        return losses

    def loss_labels(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Any]], matches: Matches, num_masks: Tensor
    ) -> dict[str, Tensor]:
        """Cross-entropy of all queries; those without a target should say "no object"."""
        logits = outputs["pred_logits"].float()
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)  # (N, Q)
        for row, target, (queries, matched) in zip(classes, targets, matches, strict=True):
            row[queries.to(row.device)] = target["labels"][matched.to(row.device)]
        return {"loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, self.empty_weight)}

    def loss_masks(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Any]], matches: Matches, num_masks: Tensor
    ) -> dict[str, Tensor]:
        """Binary cross-entropy (or focal loss) and dice loss of the matched masks, at points or everywhere."""
        masks = outputs["pred_masks"]
        predicted = torch.cat(
            [mask[queries.to(mask.device)] for mask, (queries, _) in zip(masks, matches, strict=True)]
        )
        if len(predicted) == 0:
            # The sum of nothing keeps every parameter in the graph, which DistributedDataParallel needs.
            zero = predicted.sum()
            return {"loss_mask": zero, "loss_dice": zero}

        logits, wanted, valid = self.compare(predicted, targets, [matched for _, matched in matches])  # (R, P) each
        return {
            "loss_mask": self.mask_loss(logits, wanted, valid).sum() / num_masks,
            "loss_dice": dice_loss(logits, wanted, valid).sum() / num_masks,
        }

    def _at_points(
        self, predicted: Tensor, targets: Sequence[Mapping[str, Any]], rows: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Matched predictions (R, H, W) and targets at points of each pair, (R, P), and which points count."""
        points = uncertain_points(predicted, self.num_points, self.oversample_ratio, self.importance_sample_ratio)
        wanted, valid = _sample_targets(targets, rows, points)
        return sample_logits(predicted, points), wanted, valid

    def _losses_of_one_prediction(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], num_masks: Tensor
    ) -> dict[str, Tensor]:
        matches = self.matcher(outputs, targets)
        losses: dict[str, Tensor] = {}
        for loss in self.losses:
            losses.update(loss(outputs, targets, matches, num_masks))
        return losses

    @staticmethod
    def _mean_number_of_masks(targets: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Targets per process, at least 1: gradients are averaged over processes, so sums must be divided by a mean."""
        count = torch.tensor(float(sum(len(target["labels"]) for target in targets)), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)


def _sample_targets(
    targets: Sequence[Mapping[str, Any]], rows: Sequence[Tensor], points: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Matched target masks (R, P) at points (R, P, 2), and which points count."""
    wanted, valid = [], []
    points_by_image = points.split([len(matched) for matched in rows])
    for target, matched, image_points in zip(targets, rows, points_by_image, strict=True):
        wanted.append(sample_binary_masks(target["masks"], matched.to(points.device), image_points))
        if "ignore_mask" in target:
            valid.append(~sample_nearest(target["ignore_mask"], image_points))
        else:
            valid.append(torch.ones_like(wanted[-1], dtype=torch.bool))
    counts = torch.cat(valid).float() if any("ignore_mask" in target for target in targets) else None
    return torch.cat(wanted), counts


def _fill_in_empty_weight(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    # A setting, not learnt: checkpoints made for inference leave it out.
    state_dict.setdefault(prefix + "empty_weight", module.get_buffer("empty_weight"))
