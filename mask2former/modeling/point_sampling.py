"""Values of masks at points, the only places where mask losses look (Section 3.3; PointRend, CVPR 2020).

Points are (x, y) in 0..1; 0 and 1 are the outer edges of the mask, whatever its resolution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.linear import linear
from ..ops.points import has_native_points, most_uncertain, sample_masks, sample_pixels
from ..structures import SegmentMasks
from .query_masks import QueryMasks

__all__ = ["importance_sampling_sizes", "sample_binary_masks", "sample_logits", "sample_nearest", "uncertain_points"]


def sample_logits(logits: Tensor | Sequence[Tensor], points: Tensor) -> Tensor:
    """Bilinear samples, differentiable.

    Args:
        logits: (L, Q, H, W) mask logits, or L tensors.
        points: (L, P, 2), the same for all Q masks.

    Returns:
        (L, Q, P) float32.
    """
    if not isinstance(logits, Tensor):
        return torch.cat([sample_logits(one[None], where[None]) for one, where in zip(logits, points, strict=True)])
    if isinstance(logits, QueryMasks) and logits.features.dim() == 3 and points.shape[1] < logits.shape[-2:].numel():
        # Bilinear samples and products with embeddings are both linear, so they can be swapped.
        features = logits.features.to(torch.promote_types(logits.features.dtype, logits.dtype))
        pixels = _sample_pixels(features, points).to(logits.dtype)  # (L, P, C)
        if len(pixels) == 1:  # with a batch, PyTorch copies all pixels in bfloat16 on a CPU
            return linear(pixels[0], logits.embeddings[0]).T[None].float()
        return (logits.embeddings @ pixels.mT).float()
    grid = (2 * points).sub_(1)[:, None]  # (L, 1, P, 2); in place: there may be ten million points
    return F.grid_sample(logits.float(), grid, align_corners=False)[:, :, 0]


def _sample_pixels(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (L, P, C) of features (C, H, W): whole pixels, whose channels best lie together in memory."""
    if has_native_points(points, features, channels=len(features)):
        return sample_pixels(features.permute(1, 2, 0), points.flatten(0, -2)).unflatten(0, points.shape[:2])
    features = features.float()
    height, width = features.shape[-2:]
    x, y = (points.flatten(0, -2)[:, i] * size - 0.5 for i, size in enumerate((width, height)))
    columns, column_weights = _neighbours(x, width)
    rows, row_weights = _neighbours(y, height)
    index = rows[:, :, None] * width + columns[:, None]  # (L * P, 2, 2)
    weights = row_weights[:, :, None] * column_weights[:, None]
    pixels = F.embedding_bag(index.flatten(1), features.flatten(1).T, per_sample_weights=weights.flatten(1), mode="sum")
    return pixels.unflatten(0, points.shape[:2])


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
        points: (..., R, P, 2) in 0..1, or (..., 1, P, 2) for the same points in each mask.

    Returns:
        (..., R, P) float32 in 0..1; outside the mask is 0.
    """
    if has_native_points(points) and masks.dtype == torch.bool:
        rows_of_points = points.flatten(0, -4) if points.dim() > 3 else points[None]
        samples = sample_masks(*_maps(masks, rows), rows_of_points)
        return samples.view(*points.shape[:-3], *samples.shape[1:])
    height, width = masks.shape[-2:]
    x, y = points[..., 0] * width + 0.5, points[..., 1] * height + 0.5  # from the centre of the first padded pixel
    left, top = x.floor(), y.floor()
    pixels, first, ids = _pixels_of_segments(masks, rows) if isinstance(masks, SegmentMasks) else _pixels(masks, rows)
    index = first + top.long() * (width + 2) + left.long()  # floats are too coarse for large masks

    def look_up(index: Tensor) -> Tensor:
        values = _take(pixels, index)
        return (values if ids is None else values == ids).float()

    def sample_row(index: Tensor) -> Tensor:
        return torch.lerp(look_up(index), look_up(index + 1), x - left)

    return torch.lerp(sample_row(index), sample_row(index + width + 2), y - top)


def _pixels(masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | int, Tensor | None]:
    """Where :func:`sample_binary_masks` looks masks up, for each of the rows.

    Returns:
        Pixels with a border of one outside, so that all four neighbours of a point exist; the number of the first pixel
        of each row's mask; and the value (R, 1) of the pixels in it, None for True.
    """
    padded = F.pad(masks, (1, 1, 1, 1))  # (T, H + 2, W + 2)
    return padded, rows[:, None] * padded.shape[1:].numel(), None


def _pixels_of_segments(masks: SegmentMasks, rows: Tensor) -> tuple[Tensor, Tensor | int, Tensor | None]:
    """As :func:`_pixels`; all masks are looked up in one map."""
    return F.pad(masks.id_map, (1, 1, 1, 1)), 0, masks.ids[rows, None]


def _maps(masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the native operator takes: maps, the index (R,) of each row's map, and the row's id (R,) in it."""
    if isinstance(masks, SegmentMasks):
        return masks.id_map[None], torch.zeros_like(rows), masks.ids[rows].int()
    return masks.view(torch.uint8), rows, torch.ones_like(rows, dtype=torch.int32)


def _take(pixels: Tensor, index: Tensor) -> Tensor:
    """``pixels.flatten()[index]``, which on a CPU takes many times as long."""
    return pixels.flatten().index_select(0, index.flatten()).view_as(index)


def sample_nearest(mask: Tensor, points: Tensor) -> Tensor:
    """Values of the pixels (H, W) that the points (..., 2) fall into: (...)."""
    height, width = mask.shape
    x = (points[..., 0] * width).long().clamp(0, width - 1)
    y = (points[..., 1] * height).long().clamp(0, height - 1)
    return _take(mask, y * width + x)


def importance_sampling_sizes(
    num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> tuple[int, int]:
    """How many points :func:`uncertain_points` is given for each mask.

    Args:
        num_points: P, that it returns.
        oversample_ratio: candidates per point, of which it takes the most uncertain ones.
        importance_sample_ratio: share of points that are taken from the candidates.

    Returns:
        Numbers of candidates, and of points that are taken whatever the mask.
    """
    return int(num_points * oversample_ratio), num_points - int(importance_sample_ratio * num_points)


def uncertain_points(logits: Tensor, candidates: Tensor, uniform: Tensor, num_points: int) -> Tensor:
    """Importance sampling: more points where a mask is undecided, the rest uniform.

    Args:
        logits: (R, H, W) mask logits.
        candidates: random points (R, C, 2); the most uncertain ones (smallest absolute logit) are taken.
        uniform: random points (R, U, 2); all of them are taken.
        num_points: P.

    Returns:
        (R, P, 2).
    """
    count = num_points - uniform.shape[1]
    logits = logits.detach()
    if has_native_points(candidates, logits):
        return torch.cat([most_uncertain(logits.float(), candidates, count), uniform], dim=1)
    certainty = sample_logits(logits[:, None], candidates)[:, 0].abs()
    chosen = certainty.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), uniform], dim=1)
