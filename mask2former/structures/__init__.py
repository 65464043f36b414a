"""Tensors that are computed where someone looks at them, and batches of several sizes."""

from .lazy_tensor import LazyTensor
from .nested_tensor import NestedTensor, nested_tensor_from_tensor_list
from .segment_masks import SegmentMasks

__all__ = ["LazyTensor", "NestedTensor", "SegmentMasks", "nested_tensor_from_tensor_list"]
