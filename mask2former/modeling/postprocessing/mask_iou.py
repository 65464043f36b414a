"""How much masks overlap."""

from torch import Tensor

__all__ = ["pairwise_iou"]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks (A, ...) and (B, ...) bool: (A, B) float32; 0 where both are empty."""
    a, b = a.flatten(1).float(), b.flatten(1).float()
    intersection = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - intersection
    return intersection / union.clamp(min=1)
