"""Merged segments to panoptic and instance results; the rules are those of ``modeling.postprocessing``."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from ..postprocessing import masks_to_boxes, most_probable_pairs
from ..postprocessing.segments import accept_segments, count_areas
from .merging import SURELY_OUTSIDE, MaskPatch

__all__ = ["Canvas", "instances_of_patches", "panoptic_of_patches"]


@dataclass(frozen=True)
class Canvas:
    """How patches of the grid on which masks are predicted lie in the output.

    Attributes:
        grid_size: (height, width) of the grid in cells, padding included.
        image_size: (height, width) of the image that the network saw.
        output_size: (height, width) of the result.
        stride: side of a cell in pixels of the image.
        device: of the result.
    """

    grid_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]
    stride: int
    device: torch.device | None = None

    def draw(self, patch: MaskPatch) -> tuple[tuple[slice, slice], Tensor]:
        """Mask logits at the output's pixels, bilinear.

        Returns:
            Rows and columns of the output that the patch reaches, and its logits there.
        """
        logits = F.pad(patch.logits, (1, 1, 1, 1), value=SURELY_OUTSIDE)
        spans = []
        for axis, start in enumerate((patch.top, patch.left)):
            span, lower, fraction = self._sources(axis, start, patch.logits.shape[axis], logits.device)
            upper = (lower + 1).clamp(max=self.grid_size[axis] - 1)
            # Cells of the patch that are padded by one on either side.
            first, second = (logits.index_select(axis, index - (start - 1)) for index in (lower, upper))
            logits = torch.lerp(first, second, fraction[:, None] if axis == 0 else fraction)
            spans.append(span)
        return (spans[0], spans[1]), logits

    def _sources(self, axis: int, start: int, length: int, device: torch.device) -> tuple[slice, Tensor, Tensor]:
        """The output's pixels that lie in cells ``start - 1`` to ``start + length``, and where each comes from.

        Returns:
            The pixels, and for each the cell below its position and how far it is from there to the next, in 0..1.
        """
        scale = self.image_size[axis] / (self.output_size[axis] * self.stride)  # cells a pixel
        position = (torch.arange(self.output_size[axis], device=device) + 0.5) * scale - 0.5
        position = position.clamp(0, self.grid_size[axis] - 1)
        inside = ((position > start - 1) & (position < start + length)).nonzero().flatten()
        if len(inside) == 0:
            empty = position[:0]
            return slice(0, 0), empty.long(), empty
        span = slice(int(inside[0]), int(inside[-1]) + 1)
        lower = position[span].floor()
        return span, lower.long(), position[span] - lower


def panoptic_of_patches(
    patches: Sequence[MaskPatch],
    canvas: Canvas,
    *,
    thing_classes: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    with_scores: bool = False,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """:func:`~mask2former.modeling.postprocessing.panoptic_inference` of segments that are patches."""
    best = torch.full(canvas.output_size, -1.0, device=canvas.device)
    winner = torch.zeros(canvas.output_size, dtype=torch.int64, device=canvas.device)
    inside = torch.zeros(canvas.output_size, dtype=torch.bool, device=canvas.device)
    labels: list[int] = []
    own_areas: list[Tensor] = []
    scores: list[float] = []
    for patch in patches:
        score, label = patch.probabilities.max(0)
        if label == len(patch.probabilities) - 1 or score <= object_mask_threshold:
            continue
        area, logits = canvas.draw(patch)
        probabilities = logits.sigmoid()
        own = probabilities >= 0.5
        better = score * probabilities > best[area]
        best[area] = torch.where(better, score * probabilities, best[area])
        winner[area] = torch.where(better, len(labels), winner[area])
        inside[area] = torch.where(better, own, inside[area])
        labels.append(int(label))
        own_areas.append(own.sum())
        scores.append(float(score))
    if not labels:
        return torch.zeros(canvas.output_size, dtype=torch.int32, device=canvas.device), []
    return accept_segments(
        winner,
        inside,
        count_areas(winner, inside, torch.stack(own_areas)),
        labels,
        thing_classes=thing_classes,
        overlap_threshold=overlap_threshold,
        scores=scores if with_scores else None,
    )


def instances_of_patches(
    patches: Sequence[MaskPatch],
    canvas: Canvas,
    *,
    topk: int,
    allowed_classes: Collection[int] | None = None,
    least_probability: float = 0.0,
) -> Instances:
    """:func:`~mask2former.modeling.postprocessing.instance_inference` of segments that are patches."""
    scores = torch.zeros(0, device=canvas.device)
    classes, rows = scores.long(), list[int]()
    if patches:
        probabilities = torch.stack([patch.probabilities[:-1] for patch in patches])  # (G, K)
        scores, chosen, classes = most_probable_pairs(probabilities, topk, allowed_classes, least_probability)
        rows = chosen.tolist()
    masks = torch.zeros((len(rows), *canvas.output_size), dtype=torch.bool, device=canvas.device)
    mask_scores = torch.zeros_like(scores)
    for index, row in enumerate(rows):
        area, logits = canvas.draw(patches[row])
        inside = logits > 0
        masks[index][area] = inside
        mask_scores[index] = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
    result = Instances(canvas.output_size)
    result.pred_masks = masks
    result.pred_boxes = Boxes(masks_to_boxes(masks))
    result.scores = scores * mask_scores
    result.pred_classes = classes
    return result
