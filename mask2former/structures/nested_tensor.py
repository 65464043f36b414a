"""Tensors of several sizes as one batch, with DETR's names, which the official release's criteria use."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["NestedTensor", "is_dist_avail_and_initialized", "nested_tensor_from_tensor_list"]


class NestedTensor:
    """A padded batch.

    Args:
        tensors: (N, C, H, W).
        mask: (N, H, W) bool, True in the padding.
    """

    def __init__(self, tensors: Tensor, mask: Tensor | None) -> None:
        self.tensors = tensors
        self.mask = mask

    def to(self, device: Any) -> "NestedTensor":
        """The same on a device."""
        return NestedTensor(self.tensors.to(device), None if self.mask is None else self.mask.to(device))

    def decompose(self) -> tuple[Tensor, Tensor | None]:
        """Both parts."""
        return self.tensors, self.mask


def nested_tensor_from_tensor_list(tensor_list: Sequence[Tensor]) -> NestedTensor:
    """Pad tensors (C_i, H_i, W_i), which may have different numbers of channels too, with zeros to one size."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensor_list), strict=True)]
    first = tensor_list[0]
    batch = torch.zeros((len(tensor_list), *shape), dtype=first.dtype, device=first.device)
    mask = torch.ones((len(tensor_list), *shape[1:]), dtype=torch.bool, device=first.device)
    for tensor, padded, outside in zip(tensor_list, batch, mask, strict=True):
        channels, height, width = tensor.shape
        padded[:channels, :height, :width] = tensor
        outside[:height, :width] = False
    return NestedTensor(batch, mask)


def is_dist_avail_and_initialized() -> bool:
    """Whether there are several processes that can talk."""
    return dist.is_available() and dist.is_initialized()
