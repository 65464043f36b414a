"""Batches of several sizes."""

import torch

from mask2former.structures import nested_tensor_from_tensor_list
from mask2former.structures.nested_tensor import is_dist_avail_and_initialized


def test_padding_is_zero_and_in_the_mask() -> None:
    masks = [torch.ones(2, 3, 5, dtype=torch.bool), torch.ones(4, 6, 2, dtype=torch.bool)]
    tensors, mask = nested_tensor_from_tensor_list(masks).to("cpu").decompose()
    assert mask is not None
    assert tensors.shape == (2, 4, 6, 5)
    assert tensors.dtype == torch.bool
    for index, given in enumerate(masks):
        channels, height, width = given.shape
        assert tensors[index, :channels, :height, :width].all()
        assert tensors[index].sum() == given.numel()
        assert not mask[index, :height, :width].any()
        assert (~mask[index]).sum() == height * width


def test_one_process_has_nobody_to_talk_to() -> None:
    assert not is_dist_avail_and_initialized()
