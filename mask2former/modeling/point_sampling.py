"""Values of masks at points, the only places where mask losses look (Section 3.3; PointRend, CVPR 2020).

Points are (x, y) in 0..1; 0 and 1 are the outer edges of the mask, whatever its resolution.
"""

from collections.abc import Callable

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor
from torch.nn import functional as F

from ..structures import SegmentMasks
from .query_masks import QueryMasks

__all__ = ["draw_points", "sample_binary_masks", "sample_logits", "sample_nearest", "uncertain_points"]


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples, differentiable.

    Args:
        logits: (R, H, W) mask logits.
        points: (R, P, 2), or (1, P, 2) for the same points in each mask.

    Returns:
        (R, P) float32.
    """
    if isinstance(logits, QueryMasks) and points.shape[0] == 1 and points.shape[1] < logits.shape[-2:].numel():
        # Bilinear samples and products with embeddings are both linear, so they can be swapped.
        pixels = _sample_pixels(logits.features.float(), points[0])  # (P, C)
        return (logits.embeddings @ pixels.to(logits.dtype).T).float()
    logits = logits.float()
    if points.shape[0] == 1:
        return point_sample(logits[None], points, align_corners=False)[0]
    return point_sample(logits[:, None], points, align_corners=False)[:, 0]


def _sample_pixels(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (P, C) of features (C, H, W), pixel by pixel with all their channels, which lie together."""
    height, width = features.shape[-2:]
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    columns, column_weights = _neighbours(x, width)
    rows, row_weights = _neighbours(y, height)
    index = rows[:, :, None] * width + columns[:, None]  # (P, 2, 2)
    weights = row_weights[:, :, None] * column_weights[:, None]
    return F.embedding_bag(index.flatten(1), features.flatten(1).T, per_sample_weights=weights.flatten(1), mode="sum")


def _neighbours(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels around positions (P,) on an axis, and their weights, 0 for those outside: (P, 2) each."""
    first = position.floor()
    pixels = torch.stack([first, first + 1], dim=1).long()
    weights = torch.stack([first + 1 - position, position - first], dim=1)
    return pixels.clamp(0, length - 1), weights * ((pixels >= 0) & (pixels < length))


def sample_binary_masks(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of binary masks, without a copy of the masks as floats.

    Args:
        masks: (T, H, W) bool.
        rows: (R,) int64, which mask each row of points is for.
        points: (R, P, 2) in 0..1, or (1, P, 2) for the same points in each mask.

    Returns:
        (R, P) float32 in 0..1; outside the mask is 0.
    """
    height, width = masks.shape[-2:]
    x, y = points[..., 0] * width + 0.5, points[..., 1] * height + 0.5  # from the centre of the first padded pixel
    left, top = x.floor(), y.floor()
    index = top.long() * (width + 2) + left.long()  # floats are too coarse for large masks
    look_up = _pixels_of_segments(masks, rows) if isinstance(masks, SegmentMasks) else _pixels_of_masks(masks, rows)

    def sample_row(index: Tensor) -> Tensor:
        return torch.lerp(look_up(index).float(), look_up(index + 1).float(), x - left)

    return torch.lerp(sample_row(index), sample_row(index + width + 2), y - top)


# Around the masks there is a pixel that is outside, so that all four neighbours of a point are there. These take the
# numbers of pixels in the padded masks, (R, P) or (1, P), to their values (R, P).
def _pixels_of_masks(masks: Tensor, rows: Tensor) -> Callable[[Tensor], Tensor]:
    padded = F.pad(masks[rows], (1, 1, 1, 1)).flatten(1)  # (R, (H + 2) * (W + 2))
    return lambda index: padded.gather(1, index.expand(len(rows), -1))


def _pixels_of_segments(masks: SegmentMasks, rows: Tensor) -> Callable[[Tensor], Tensor]:
    padded, ids = F.pad(masks.id_map, (1, 1, 1, 1)).flatten(), masks.ids[rows, None]
    return lambda index: padded[index] == ids


def sample_nearest(mask: Tensor, points: Tensor) -> Tensor:
    """Values of the pixels (H, W) that the points (..., 2) fall into: (...)."""
    height, width = mask.shape
    x = (points[..., 0] * width).long().clamp(0, width - 1)
    y = (points[..., 1] * height).long().clamp(0, height - 1)
    return mask[y, x]


def draw_points(
    rows: int, num_points: int, oversample_ratio: float, importance_sample_ratio: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random points for importance sampling, before masks are known.

    Args:
        rows: R, how many masks there may be at most.
        num_points: P.
        oversample_ratio: candidates per point, of which :func:`uncertain_points` takes the most uncertain ones.
        importance_sample_ratio: share of points that are taken from the candidates.
        device: of the points.

    Returns:
        Candidates (R, C, 2), and points that are taken whatever the mask, (R, U, 2).
    """
    candidates = torch.rand(rows, int(num_points * oversample_ratio), 2, device=device)
    uniform = torch.rand(rows, num_points - int(importance_sample_ratio * num_points), 2, device=device)
    return candidates, uniform


def uncertain_points(logits: Tensor, candidates: Tensor, uniform: Tensor, num_points: int) -> Tensor:
    """Importance sampling: more points where a mask is undecided, the rest uniform.

    Args:
        logits: (R, H, W) mask logits.
        candidates: what :func:`draw_points` drew; the most uncertain ones (smallest absolute logit) are taken.
        uniform: likewise; all of them are.
        num_points: P.

    Returns:
        (R, P, 2).
    """
    certainty = sample_logits(logits.detach(), candidates).abs()
    chosen = certainty.topk(num_points - uniform.shape[1], dim=1, largest=False, sorted=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), uniform], dim=1)
