"""Values of masks at points, the only places where mask losses look (Section 3.3; PointRend, CVPR 2020).

Points are (x, y) in 0..1; 0 and 1 are the outer edges of the mask, whatever its resolution.
"""

import torch
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample
from torch import Tensor

__all__ = ["sample_binary_masks", "sample_logits", "sample_nearest", "uncertain_points"]


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples, differentiable.

    Args:
        logits: (R, H, W) mask logits.
        points: (R, P, 2), or (1, P, 2) for the same points in each mask.

    Returns:
        (R, P) float32.
    """
    logits = logits.float()
    if points.shape[0] == 1:
        return point_sample(logits[None], points, align_corners=False)[0]
    return point_sample(logits[:, None], points, align_corners=False)[:, 0]


def sample_binary_masks(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of binary masks, without a copy of the masks as floats.

    Args:
        masks: (T, H, W) bool.
        rows: (R,) int64, which mask each row of points is for.
        points: (R, P, 2), or (1, P, 2) for the same points in each mask.

    Returns:
        (R, P) float32 in 0..1; outside the mask is 0.
    """
    height, width = masks.shape[-2:]
    pixel = points * points.new_tensor([width, height]) - 0.5
    corner = pixel.floor()
    fraction = pixel - corner
    flat = masks.flatten(1)
    samples = points.new_zeros((rows.shape[0], points.shape[1]))
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[..., 0] + dx, corner[..., 1] + dy
        weight = (1 - dx - fraction[..., 0]).abs() * (1 - dy - fraction[..., 1]).abs()
        weight = weight * ((x >= 0) & (x < width) & (y >= 0) & (y < height))
        index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()  # (R or 1, P)
        samples += flat[rows[:, None], index] * weight
    return samples


def sample_nearest(mask: Tensor, points: Tensor) -> Tensor:
    """Values of the pixels (H, W) that the points (..., 2) fall into: (...)."""
    height, width = mask.shape
    x = (points[..., 0] * width).long().clamp(0, width - 1)
    y = (points[..., 1] * height).long().clamp(0, height - 1)
    return mask[y, x]


def uncertain_points(
    logits: Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Importance sampling: more points where a mask is undecided, the rest uniform.

    Args:
        logits: (R, H, W) mask logits.
        num_points: P.
        oversample_ratio: candidates per point; the most uncertain ones (smallest absolute logit) are taken.
        importance_sample_ratio: share of points that are taken from the candidates.

    Returns:
        (R, P, 2).
    """
    with torch.no_grad():
        return get_uncertain_point_coords_with_randomness(
            logits.float()[:, None], lambda x: -x.abs(), num_points, oversample_ratio, importance_sample_ratio
        )
