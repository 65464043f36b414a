"""Masks of disjoint segments, kept as one map of their ids."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .lazy_tensor import LazyTensor

__all__ = ["SegmentMasks"]


class SegmentMasks(LazyTensor):
    """Masks (T, H, W) bool of segments that do not overlap, in the memory of one.

    A tensor to everyone who looks at it. What stays a map: copies to another device and other processes, selections of
    masks, padding, and samples by :func:`~mask2former.modeling.point_sampling.sample_binary_masks`.

    Attributes:
        id_map: (H, W) uint8 or int32, which segment a pixel belongs to; 0 for none.
        ids: (T,) of the same type, the segments that the masks are of, none of them 0.
    """

    id_map: Tensor
    ids: Tensor

    @staticmethod
    def __new__(cls, id_map: Tensor, ids: Tensor) -> "SegmentMasks":
        masks = cls.describe((len(ids), *id_map.shape), torch.bool, id_map.device)
        masks.id_map, masks.ids = id_map, ids
        return masks

    def full(self) -> Tensor:
        """All masks, an ordinary tensor."""
        return self.id_map == self.ids[:, None, None]

    def pad(self, padding: tuple[int, int, int, int]) -> "SegmentMasks":
        """Add pixels of no segment at the left, right, top and bottom, as ``torch.nn.functional.pad`` does."""
        return SegmentMasks(F.pad(self.id_map, padding), self.ids)

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """As ``Tensor.to``; masks that stay bool move as map."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype not in (None, torch.bool):
            return self.full().to(*args, **kwargs)
        id_map, ids = (part.to(device, non_blocking=non_blocking, copy=copy) for part in (self.id_map, self.ids))
        return SegmentMasks(id_map, ids)

    def __getitem__(self, index: Any) -> Tensor:
        if type(index) is int:  # not bool, which adds a dimension
            return self.id_map == self.ids[index]
        if isinstance(index, slice) or (isinstance(index, Tensor) and index.dim() == 1):
            return SegmentMasks(self.id_map, self.ids[index])
        return self.full()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SegmentMasks, (self.id_map, self.ids)
