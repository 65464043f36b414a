"""Convolutions with a sum and a ReLU against PyTorch's, one after the other."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.ops.convolution import convolve_relu

# Input and output channels, side of the filter, stride, padding, dilation, groups.
CONVOLUTIONS = [(16, 32, 1, 1, 0, 1, 1), (16, 24, 3, 2, 1, 1, 1), (32, 32, 3, 1, 2, 2, 4), (3, 16, 7, 2, 3, 1, 1)]


def make(channels: int, outputs: int, side: int, stride: int, padding: int, dilation: int, groups: int) -> tuple:
    """Pixels, weights, biases, something to add, and how to convolve."""
    how = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2, "groups": groups}
    x, weight = torch.randn(2, channels, 18, 20), torch.randn(outputs, channels // groups, side, side) / side
    bias = torch.randn(outputs)
    return x, weight, bias, torch.randn_like(F.conv2d(x, weight, bias, **how)), how


def expected(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, how: dict) -> Tensor:
    result = F.conv2d(x.double(), weight.double(), bias.double(), **how)
    return F.relu(result if added is None else result + added.double())


@pytest.mark.parametrize("numbers", CONVOLUTIONS)
@pytest.mark.parametrize("adding", [False, True])
def test_on_a_cpu(numbers: tuple[int, ...], adding: bool) -> None:
    x, weight, bias, added, how = make(*numbers)
    given = added if adding else None
    result = convolve_relu(x, weight, bias, given, **how)
    torch.testing.assert_close(result.double(), expected(x, weight, bias, given, how), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numbers", CONVOLUTIONS)
def test_what_records_a_graph_knows_the_result(numbers: tuple[int, ...]) -> None:
    with torch._subclasses.FakeTensorMode():
        *tensors, how = make(*numbers)
        tensors = [x.to("cuda", torch.bfloat16) for x in tensors]
        result = torch.ops.mask2former.convolve_relu(*tensors, *how.values())
        assert (result.shape, result.dtype, result.device) == (tensors[3].shape, torch.bfloat16, tensors[3].device)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("numbers", CONVOLUTIONS)
@pytest.mark.parametrize("adding", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_on_a_gpu(numbers: tuple[int, ...], adding: bool, dtype: torch.dtype) -> None:
    *tensors, how = make(*numbers)
    tensors = [x.to("cuda", dtype, memory_format=torch.channels_last) if x.dim() == 4 else x.cuda() for x in tensors]
    tensors[2] = tensors[2].to(dtype)
    x, weight, bias, added = tensors
    given = added if adding else None
    with torch.autocast("cuda", dtype):
        result = convolve_relu(x, weight, bias, given, **how)
    wanted = expected(x, weight, bias, given, how)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-2, atol=1e-2 * float(wanted.max()))
