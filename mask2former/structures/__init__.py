"""Tensors that are computed where someone looks at them."""

from .lazy_tensor import LazyTensor
from .segment_masks import SegmentMasks

__all__ = ["LazyTensor", "SegmentMasks"]
