"""Semantic results: the score of each class at each pixel (MaskFormer, Section 3.4)."""

import torch
from torch import Tensor

from ...ops.masks import has_native_masks, resize_masks
from .chunks import in_chunks
from .prediction import MaskGeometry

__all__ = ["semantic_inference"]

# Numbers in the rows of all masks that are resized together: they fit a processor's second-level cache or nearly.
_BAND = 1 << 20
_GPU_BAND = 1 << 23  # likewise, of large GPUs


def semantic_inference(
    mask_cls: Tensor, mask_pred: Tensor, geometry: MaskGeometry, *, resize_before_inference: bool = True
) -> Tensor:
    """Score of a class at a pixel: the sum over queries of class probability times mask probability.

    Args:
        mask_cls: (Q, K + 1).
        mask_pred: (Q, h, w).
        geometry: to the output.
        resize_before_inference: mix classes at the output's size; otherwise at the padded input's, then resize scores.

    Returns:
        (K, height, width) float32; not normalised over classes.
    """
    probabilities = mask_cls.float().softmax(-1)[:, :-1]  # (Q, K)
    if resize_before_inference and has_native_masks(mask_pred, mask_cls):
        return _mix_by_rows(probabilities, mask_pred, geometry)
    resize = geometry.to_output if resize_before_inference else geometry.to_padded
    size = geometry.output_size if resize_before_inference else geometry.padded_size
    scores = mask_pred.new_zeros((probabilities.shape[1], *size), dtype=torch.float32)
    flat = scores.flatten(1)
    for chunk in in_chunks(torch.arange(len(mask_pred), device=mask_pred.device)):
        flat.addmm_(probabilities[chunk].T, resize(mask_pred[chunk]).sigmoid_().flatten(1))
    return scores if resize_before_inference else geometry.padded_to_output(scores)


def _mix_by_rows(probabilities: Tensor, mask_pred: Tensor, geometry: MaskGeometry) -> Tensor:
    """Class scores (K, height, width) of class probabilities (Q, K), some rows of all masks at a time."""
    height, width = geometry.output_size
    resizing = geometry.resizing(mask_pred)
    scores = mask_pred.new_empty((probabilities.shape[1], height, width), dtype=torch.float32)
    band = _BAND if mask_pred.device.type == "cpu" else _GPU_BAND
    step = max(1, band // max(1, len(mask_pred) * width))
    for begin in range(0, height, step):
        rows = range(begin, min(height, begin + step))
        inside = resize_masks(mask_pred, resizing, rows, sigmoid=True).flatten(1)  # (Q, len(rows) * width)
        with torch.autocast(mask_pred.device.type, enabled=False):
            torch.mm(probabilities.T, inside, out=scores.flatten(1)[:, begin * width : rows.stop * width])
    return scores
