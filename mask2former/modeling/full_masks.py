"""Comparing whole masks, not points of them (Table 5), as MaskFormer (NeurIPS 2021) does.

These take the place of the samples in :mod:`~mask2former.modeling.point_sampling`, with every pixel a point.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["loss_pixels", "matching_pixels"]


def matching_pixels(
    logits: Tensor | Sequence[Tensor], target: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All predictions and all targets of an image, at the resolution of the predictions, which is the smaller one.

    Args:
        logits: (Q, H, W) mask logits of each of L layers.
        target: ``masks`` (T, H', W') bool, and optionally ``ignore_mask`` (H', W') bool.

    Returns:
        Logits (L, Q, H * W) and targets (T, H * W), float32, and which pixels count, (1, H * W) 0 or 1, or None for
        all.
    """
    size = logits[0].shape[-2:]
    wanted = _shrink(target["masks"], size)
    valid = 1 - _shrink(target["ignore_mask"][None], size) if "ignore_mask" in target else None
    return torch.stack([masks.float().flatten(1) for masks in logits]), wanted, valid


def loss_pixels(
    logits: Tensor, targets: Sequence[Mapping[str, Any]], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Matched pairs of a layer at the resolution of the targets.

    Args:
        logits: (R, H, W) mask logits of the matched predictions, image after image.
        targets: for each image ``masks`` (T, H', W') bool, and optionally ``ignore_mask`` (H', W') bool.
        rows: for each image, which of its masks are matched, in the order of ``logits``; on their device.

    Returns:
        Logits and targets (R, H' * W'), float32, and which pixels count, (R, H' * W') 0 or 1, or None for all.
    """
    wanted = torch.cat([target["masks"][matched].flatten(1) for target, matched in zip(targets, rows, strict=True)])
    size = targets[0]["masks"].shape[-2:]  # of the padded batch, so of every image
    resized = F.interpolate(logits.float()[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    if not any("ignore_mask" in target for target in targets):
        return resized.flatten(1), wanted.float(), None
    nothing_ignored = torch.zeros(size, dtype=torch.bool, device=logits.device)
    valid = [
        (~target.get("ignore_mask", nothing_ignored)).expand(len(matched), -1, -1)
        for target, matched in zip(targets, rows, strict=True)
    ]
    return resized.flatten(1), wanted.float(), torch.cat(valid).flatten(1).float()


def _shrink(masks: Tensor, size: torch.Size) -> Tensor:
    """Masks (T, H, W) bool to (T, h * w) float32, the nearest pixel of each."""
    return F.interpolate(masks[:, None].to(torch.uint8), size=size, mode="nearest")[:, 0].flatten(1).float()
