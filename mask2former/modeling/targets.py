"""What a batch's annotations are to the criterion."""

from typing import Any

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor
from torch.nn import functional as F

from ..structures import SegmentMasks

__all__ = ["prepare_targets"]


def prepare_targets(
    batched_inputs: list[dict[str, Any]],
    padded_size: tuple[int, int],
    device: torch.device,
    *,
    ignore_void: bool = False,
) -> list[dict[str, Any]]:
    """Targets of :class:`~mask2former.modeling.criterion.SetCriterion`, with masks padded to the size of the batch.

    Args:
        batched_inputs: for each image ``instances`` and optionally ``ignore_mask``, as of ``MaskFormer.forward``.
        padded_size: (height, width) of the batch.
        device: of the targets.
        ignore_void: give an ``ignore_mask``, True at void pixels and in the padding.

    Returns:
        For each image ``labels`` (T,) int64, ``masks`` (T, height, width) bool, :class:`SegmentMasks` where they were
        so, ``name``, for messages, and if asked for ``ignore_mask`` (height, width) bool.
    """
    targets = []
    for entry in batched_inputs:
        # One by one: Detectron2's Boxes, which instances may have too, cannot be moved without waiting.
        instances: Instances = entry["instances"]
        masks = instances.gt_masks.tensor if isinstance(instances.gt_masks, BitMasks) else instances.gt_masks
        masks = masks.to(device, non_blocking=True)
        padding = (0, padded_size[1] - masks.shape[-1], 0, padded_size[0] - masks.shape[-2])
        target = {
            "labels": instances.gt_classes.to(device, non_blocking=True),
            "masks": masks.pad(padding) if isinstance(masks, SegmentMasks) else F.pad(masks.bool(), padding),
            "name": entry.get("file_name", entry.get("image_id", "(unnamed)")),
        }
        if ignore_void:
            target["ignore_mask"] = F.pad(_void_pixels(entry, masks), padding, value=True)
        targets.append(target)
    return targets


def _void_pixels(entry: dict[str, Any], masks: Tensor) -> Tensor:
    """(H, W) bool, on the device of the masks (T, H, W)."""
    void: Tensor | None = entry.get("ignore_mask")
    if void is None:
        return torch.zeros(masks.shape[-2:], dtype=torch.bool, device=masks.device)
    return void.to(masks.device, non_blocking=True)
