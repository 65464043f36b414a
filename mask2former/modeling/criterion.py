"""The training loss (Section 4.1, at the points of Section 3.3): classes of all queries, masks of the matched ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from . import mask_losses
from .full_masks import loss_pixels
from .matcher import HungarianMatcher, Matches
from .official_losses import calculate_uncertainty, dice_loss, dice_loss_jit, sigmoid_ce_loss, sigmoid_ce_loss_jit
from .point_sampling import (
    importance_sampling_sizes,
    sample_binary_masks,
    sample_logits,
    sample_nearest,
    uncertain_points,
)
from .query_masks import group_layers, select_masks

__all__ = [
    "SetCriterion",
    # Which is where the official release has them.
    "calculate_uncertainty",
    "dice_loss",
    "dice_loss_jit",
    "sigmoid_ce_loss",
    "sigmoid_ce_loss_jit",
]

LOSSES = ("labels", "masks")

# From matched masks (R, H, W), the targets, the matches of some layers and random points for them, to logits and
# targets (R, P) and which points count, (R, P) or None for all.
Comparison = Callable[
    [Tensor, Sequence[Mapping[str, Any]], Sequence[Matches], Sequence[Tensor]], tuple[Tensor, Tensor, Tensor | None]
]


class SetCriterion(nn.Module):
    """Match predictions with targets, then compare classes of all queries and masks of matched pairs.

    The cross-entropy is the weighted mean over queries, the mask losses are sums over pairs, divided by the number of
    targets in the batch.

    All layers are matched and compared together. With another matcher, or in a subclass that has a ``get_loss``,
    ``loss_labels`` or ``loss_masks`` of its own, it is one after the other by these, as in the official release.

    Args:
        num_classes: K, without "no object".
        matcher: the assignment.
        weight_dict: weight of each term by name; kept for the caller, terms are returned unweighted.
        eos_coef: weight of "no object" in the cross-entropy, where each class has 1; 0.1 in the official release.
        losses: of "labels" and "masks".
        num_points: points P per mask.
        oversample_ratio: see :func:`~mask2former.modeling.point_sampling.uncertain_points`.
        importance_sample_ratio: likewise.
        compare_on: "points", or "masks" for the mask losses of whole masks (Table 5).
        mask_loss: "cross_entropy", or "focal" as in MaskFormer; the dice loss comes with both.

    Raises:
        ValueError: if ``losses``, ``compare_on`` or ``mask_loss`` names what does not exist, there are no points, or
            fewer candidates than points to be chosen from them.
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
        if unknown and not self._has_own("get_loss"):
            raise ValueError(f"unknown losses {unknown}; the criterion has {list(LOSSES)}.")
        comparisons: dict[str, Comparison] = {"points": self._at_random_points, "masks": _everywhere}
        if compare_on not in comparisons:
            raise ValueError(
                f"MODEL.MASK_FORMER.MASK_LOSS_ON is {compare_on!r}; expected one of {sorted(comparisons)}."
            )
        if compare_on == "points" and num_points < 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRAIN_NUM_POINTS is {num_points}; masks are compared at one point or more."
            )
        if not 0 <= importance_sample_ratio <= min(oversample_ratio, 1):
            raise ValueError(
                f"MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO is {importance_sample_ratio}, the share of points that are "
                f"chosen from MODEL.MASK_FORMER.OVERSAMPLE_RATIO times as many candidates, {oversample_ratio}; let it "
                "be in 0..1 and no larger than that."
            )
        self.compare_on = compare_on
        self.compare = comparisons[compare_on]
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.losses = list(losses)
        self.mask_loss = mask_losses.find_mask_loss(mask_loss)[0]
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
            outputs: a decoder's ``pred_logits``, ``pred_masks`` and, for deep supervision, ``aux_outputs``, which have
                as many queries.
            targets: for each image ``labels`` (T,) int64, ``masks`` (T, H, W) bool over the area of ``pred_masks``, and
                optionally ``ignore_mask`` (H, W) bool and ``name`` as in :class:`HungarianMatcher`. T may be 0, or more
                than there are queries; then the worst matching targets have no query.

        Returns:
            ``loss_ce``, ``loss_mask`` and ``loss_dice``, and the same with ``_0``, ``_1``, ... for auxiliary outputs.
        """
        if not self._compares_together():
            return self._losses_by_layer(outputs, targets)
        predictions = [outputs, *outputs.get("aux_outputs", [])]
        class_logits = torch.stack([prediction["pred_logits"] for prediction in predictions], dim=1)  # (N, L, Q, K + 1)
        num_layers, num_queries = class_logits.shape[1:3]
        groups = group_layers(num_layers, self.compare_on, class_logits.device)
        points, drawn = self._draw_points(groups, num_queries, targets, class_logits.device)
        costs = self.matcher.costs(predictions, targets, points)
        matches = _to_device(self.matcher.assign(costs, targets), num_queries, class_logits.device)
        terms: dict[str, Tensor] = {}  # (L,) each
        if "labels" in self.losses:
            terms |= self._label_losses(class_logits, targets, matches)
        if "masks" in self.losses:
            masks = [prediction["pred_masks"] for prediction in predictions]
            num_masks = self._mean_number_of_masks(targets, class_logits.device)
            terms |= self._mask_losses(masks, targets, matches, groups, drawn, num_masks)
        suffixes = ["", *(f"_{index}" for index in range(len(predictions) - 1))]
        by_layer = zip(*(term.unbind() for term in terms.values()), strict=True)
        # Copies, because callers multiply them by their weights in place, as the official release does.
        return {
            name + suffix: value.clone()
            for suffix, values in zip(suffixes, by_layer, strict=True)
            for name, value in zip(terms, values, strict=True)
        }

    def get_loss(
        self,
        loss: str,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        indices: Matches,
        num_masks: float,
    ) -> dict[str, Tensor]:
        """The terms of one layer, by "labels" or "masks"; as in the official release, like the methods after it.

        Args:
            loss: which.
            outputs: ``pred_logits`` and ``pred_masks`` of the layer.
            targets: as in :meth:`forward`.
            indices: of each image the matched queries and targets.
            num_masks: what sums over masks are divided by.
        """
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; the criterion has {list(LOSSES)}.")
        compute = self.loss_labels if loss == "labels" else self.loss_masks
        return compute(outputs, targets, indices, num_masks)

    def loss_labels(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], indices: Matches, num_masks: float
    ) -> dict[str, Tensor]:
        """``loss_ce`` of one layer; see :meth:`get_loss`."""
        logits = outputs["pred_logits"]
        matches = _to_device([indices], logits.shape[1], logits.device)
        return _of_only_layer(self._label_losses(logits[:, None], targets, matches))

    def loss_masks(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], indices: Matches, num_masks: float
    ) -> dict[str, Tensor]:
        """``loss_mask`` and ``loss_dice`` of one layer; see :meth:`get_loss`."""
        masks = outputs["pred_masks"]
        matches = _to_device([indices], masks.shape[1], masks.device)
        rows = sum(len(queries) for queries, _ in indices)
        points = tuple(torch.rand(1, rows, size, 2, device=masks.device) for size in self._point_counts)
        return _of_only_layer(self._mask_losses([masks], targets, matches, [slice(0, 1)], [points], num_masks))

    @staticmethod
    def _get_src_permutation_idx(indices: Matches) -> tuple[Tensor, Tensor]:
        """Images and queries of all pairs, an index for predictions (N, Q, ...)."""
        return _numbered([queries for queries, _ in indices])

    @staticmethod
    def _get_tgt_permutation_idx(indices: Matches) -> tuple[Tensor, Tensor]:
        """Images and targets of all pairs, an index for padded targets (N, T, ...)."""
        return _numbered([matched for _, matched in indices])

    def _has_own(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(SetCriterion, name)

    def _compares_together(self) -> bool:
        """Whether everything that the official release would call is this file's and :class:`HungarianMatcher`'s."""
        same_matcher = all(
            getattr(type(self.matcher), name, None) is getattr(HungarianMatcher, name)
            for name in ("forward", "memory_efficient_forward")
        )
        return same_matcher and not any(map(self._has_own, ("get_loss", "loss_labels", "loss_masks")))

    def _losses_by_layer(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What :meth:`forward` gives, layer by layer, by a matcher that may be any and methods that may be others."""
        num_masks = self._mean_number_of_masks(targets, outputs["pred_logits"].device).item()
        last = {name: value for name, value in outputs.items() if name != "aux_outputs"}
        losses: dict[str, Tensor] = {}
        for index, layer in enumerate([last, *outputs.get("aux_outputs", [])]):
            indices = self.matcher(layer, targets)
            for loss in self.losses:
                terms = self.get_loss(loss, layer, targets, indices, num_masks)
                losses |= {name if index == 0 else f"{name}_{index - 1}": term for name, term in terms.items()}
        return losses

    def _label_losses(
        self, logits: Tensor, targets: Sequence[Mapping[str, Any]], matches: Sequence[Matches]
    ) -> dict[str, Tensor]:
        """Cross-entropy (L,) of all queries (N, L, Q, K + 1); those without a target should say "no object"."""
        classes = torch.full(logits.shape[:-1], self.num_classes, dtype=torch.int64, device=logits.device)
        for of_image, target, pairs in zip(classes, targets, _by_image(matches), strict=True):
            queries, matched = map(torch.cat, zip(*pairs, strict=True))
            of_image.view(-1)[queries] = target["labels"][matched]
        losses = F.cross_entropy(logits.float().flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        # All weights are 0 where nothing is annotated and "no object" has none.
        weights = self.empty_weight[classes].sum((0, 2)).clamp(min=torch.finfo(torch.float32).tiny)
        return {"loss_ce": losses.view_as(classes).sum((0, 2)) / weights}

    def _mask_losses(
        self,
        masks: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        matches: Sequence[Matches],
        groups: Sequence[slice],
        drawn: Sequence[Sequence[Tensor]],
        num_masks: Tensor | float,
    ) -> dict[str, Tensor]:
        """Binary cross-entropy (or focal loss) and dice loss (L,) of matched masks, at points or everywhere.

        Args:
            masks: logits (N, Q, H, W) of each layer.
            targets: of each image.
            matches: of each layer and image.
            groups: layers that are compared at once.
            drawn: for each group random candidates (L, R, C, 2) and other points (L, R, U, 2) of importance sampling,
                for as many masks as can be matched.
            num_masks: what sums are divided by.
        """
        queries = [[queries for queries, _ in of_layer] for of_layer in matches]
        sums = [
            self._sum_mask_losses(selected, targets, matches[group], points)
            for group, selected, points in zip(groups, select_masks(masks, queries, groups), drawn, strict=True)
        ]
        loss_mask, loss_dice = (torch.cat(of_groups) / num_masks for of_groups in zip(*sums, strict=True))
        return {"loss_mask": loss_mask, "loss_dice": loss_dice}

    def _sum_mask_losses(
        self, masks: Tensor, targets: Sequence[Mapping[str, Any]], matches: Sequence[Matches], drawn: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Both losses (L,), summed over the matched masks (R, H, W) of each of some layers."""
        if len(masks) == 0:
            # The sum of nothing keeps every parameter in the graph, which DistributedDataParallel needs.
            zeros = masks.sum().expand(len(matches))
            return zeros, zeros

        logits, wanted, valid = self.compare(masks, targets, matches, drawn)  # (R, P) each
        counts = _count_pairs(matches)
        return (
            _sum_rows(self.mask_loss(logits, wanted, valid), counts),
            _sum_rows(mask_losses.dice_loss(logits, wanted, valid), counts),
        )

    def _draw_points(
        self, groups: Sequence[slice], num_queries: int, targets: Sequence[Mapping[str, Any]], device: torch.device
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Random points for matching, (L, N, P, 2), and those that :meth:`_mask_losses` takes."""
        sizes = self._point_counts
        rows = sum(min(num_queries, len(target["labels"])) for target in targets)
        points = self.matcher.empty_points(groups[-1].stop, len(targets), device)
        drawn = []
        for group in groups:
            candidates, uniform = (torch.empty(len(points[group]), rows, size, 2, device=device) for size in sizes)
            drawn.append((candidates, uniform))
            # One after the other as the official release draws them, so that a seed gives the same points.
            for of_images, *of_masks in zip(points[group], candidates, uniform, strict=True):
                for part in (*of_images, *of_masks):
                    part.uniform_()
        return points, drawn

    @property
    def _point_counts(self) -> tuple[int, int]:
        """How many candidates and other points importance sampling draws for a mask."""
        num_points = self.num_points if self.compare_on == "points" else 0
        return importance_sampling_sizes(num_points, self.oversample_ratio, self.importance_sample_ratio)

    def _at_random_points(
        self, masks: Tensor, targets: Sequence[Mapping[str, Any]], matches: Sequence[Matches], drawn: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The comparison at points of importance sampling (Section 3.3)."""
        masks = masks.float()
        candidates, uniform = (_first_rows(points, _count_pairs(matches)) for points in drawn)
        points = uncertain_points(masks, candidates, uniform, self.num_points)
        return sample_logits(masks[:, None], points)[:, 0], *_sample_targets(targets, matches, points)

    @staticmethod
    def _mean_number_of_masks(targets: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Targets per process, at least 1: gradients are averaged over processes, so sums must be divided by a mean."""
        # Filled on the device: a copy to it would wait for all the work that it has been given.
        count = torch.full((), float(sum(len(target["labels"]) for target in targets)), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)


def _to_device(matches: Sequence[Matches], num_queries: int, device: torch.device) -> list[Matches]:
    """Move all indices in one copy, which nothing waits for, and number queries through all layers."""
    indices = [
        index
        for layer, of_layer in enumerate(matches)
        for queries, matched in of_layer
        for index in (queries + layer * num_queries, matched)
    ]
    moved = iter(torch.cat(indices).to(device, non_blocking=True).split([len(index) for index in indices]))
    return [[(next(moved), next(moved)) for _ in of_layer] for of_layer in matches]


def _of_only_layer(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: of_layers[0] for name, of_layers in terms.items()}


def _numbered(indices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The image of each index (R_i,) of each image, and the index; (sum(R_i),) each."""
    images = [torch.full_like(index, image) for image, index in enumerate(indices)]
    return torch.cat(images), torch.cat(list(indices))


def _by_image(matches: Sequence[Matches]) -> list[Matches]:
    """From the matches of each layer, image by image, to those of each image, layer by layer."""
    return list(zip(*matches, strict=True))


def _count_pairs(matches: Sequence[Matches]) -> list[int]:
    """How many pairs each layer has: the same number in all of them, unless costs are NaN."""
    return [sum(len(queries) for queries, _ in of_layer) for of_layer in matches]


def _first_rows(points: Tensor, counts: Sequence[int]) -> Tensor:
    """The first ``counts[l]`` rows of each layer l of (L, R, P, 2), one layer after the other: (sum(counts), P, 2)."""
    if all(count == points.shape[1] for count in counts):
        return points.flatten(0, 1)
    return torch.cat([of_layer[:count] for of_layer, count in zip(points, counts, strict=True)])


def _sum_rows(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """Sums (L,) of the losses of each layer, which come one layer after the other: (sum(counts),)."""
    if len(set(counts)) == 1:
        return losses.view(len(counts), -1).sum(1)
    return torch.stack([of_layer.sum() for of_layer in losses.split(counts)])


def _sample_targets(
    targets: Sequence[Mapping[str, Any]], matches: Sequence[Matches], points: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Matched target masks (R, P) at points (R, P, 2), and which points count."""
    lengths = [[len(matched) for _, matched in of_layer] for of_layer in matches]
    pieces = points.split([length for of_layer in lengths for length in of_layer])
    wanted, valid = [], []
    for image, (target, pairs) in enumerate(zip(targets, _by_image(matches), strict=True)):
        of_image = torch.cat(pieces[image :: len(targets)])  # of all layers
        wanted.append(sample_binary_masks(target["masks"], torch.cat([matched for _, matched in pairs]), of_image))
        if "ignore_mask" in target:
            valid.append(~sample_nearest(target["ignore_mask"], of_image))
        else:
            valid.append(torch.ones_like(wanted[-1], dtype=torch.bool))
    counts = _layer_by_layer(valid, lengths).float() if any("ignore_mask" in target for target in targets) else None
    return _layer_by_layer(wanted, lengths), counts


def _layer_by_layer(by_image: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> Tensor:
    """From the rows of each image, one layer after the other, to those of each layer, one image after the other."""
    pieces = [rows.split(of_image) for rows, of_image in zip(by_image, zip(*lengths, strict=True), strict=True)]
    return torch.cat([piece for of_layer in zip(*pieces, strict=True) for piece in of_layer])


def _everywhere(
    masks: Tensor, targets: Sequence[Mapping[str, Any]], matches: Sequence[Matches], _: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The comparison of whole masks (Table 5), of one layer at a time."""
    (of_layer,) = matches
    return loss_pixels(masks, targets, [matched for _, matched in of_layer])


def _fill_in_empty_weight(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    # A setting, not learnt: checkpoints made for inference leave it out.
    state_dict.setdefault(prefix + "empty_weight", module.get_buffer("empty_weight"))
