"""Masks as COCO's results have them."""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from mask2former.evaluation.backend import has_hotcoco

__all__ = ["encode_mask"]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run lengths, in a form that JSON can hold.

    Args:
        mask: bool, or numbers that are 0 or 1, such as the floats that the official ``instance_inference`` gives.
    """
    if has_hotcoco():
        import hotcoco.mask

        rle: dict[str, Any] = hotcoco.mask.encode(mask.astype(bool, copy=False))  # reads rows as they lie in memory
    else:
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
