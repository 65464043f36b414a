"""Values of masks and embeddings at points, on CPUs by native operators without gradients.

Points are (x, y) float32 in 0..1; 0 and 1 are the outer edges of a map, whatever its resolution, and outside it is 0.
"""

import torch
from torch import Tensor

from ._library import has_native_kernel
from .recording import is_recording

__all__ = ["has_native_points", "most_uncertain", "sample_masks", "sample_pixels"]

_CHANNELS = 32  # numbers of channels are multiples of this


def has_native_points(points: Tensor, *others: Tensor, channels: int = 0) -> bool:
    """Whether the native operators take these: float32 points on a CPU, others in float32 or bfloat16, no gradients."""
    return (
        points.device.type == "cpu"
        and points.dtype == torch.float32
        and channels % _CHANNELS == 0
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (points, *others)))
        and not is_recording()
        and all(map(has_native_kernel, (points, *others)))
    )


def sample_pixels(pixels: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of embeddings; sums are in float32.

    Args:
        pixels: (H, W, C) float32 or bfloat16, C a multiple of 32.
        points: (P, 2).

    Returns:
        (P, C) of the type of ``pixels``.
    """
    result: Tensor = torch.ops.mask2former.sample_pixels(pixels, points)
    return result


def sample_masks(maps: Tensor, indices: Tensor, ids: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of R masks: mask r is where the map ``indices[r]`` is ``ids[r]``.

    Args:
        maps: (T, H, W) uint8 or int32.
        indices: (R,) int64.
        ids: (R,) int32.
        points: (L, R, P, 2), or (L, 1, P, 2) for the same points in each mask.

    Returns:
        (L, R, P) float32 in 0..1.
    """
    result: Tensor = torch.ops.mask2former.sample_masks(maps, indices, ids, points)
    return result


def most_uncertain(logits: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The candidates at which bilinear samples of masks are nearest to 0.

    Args:
        logits: (R, H, W) float32.
        candidates: (R, C, 2).
        count: K, at most C.

    Returns:
        (R, K, 2); of equal ones the first, and those with NaN only if there are no others.
    """
    result: Tensor = torch.ops.mask2former.most_uncertain(logits, candidates, count)
    return result
