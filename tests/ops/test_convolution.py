"""Convolutions with a sum and a ReLU against PyTorch's, one after the other."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.ops.convolution import convolve_relu

# Input and output channels, side of the filter, stride, padding, dilation, groups.
CONVOLUTIONS = [(16, 32, 1, 1, 0, 1, 1), (16, 24, 3, 2, 1, 1, 1), (32, 32, 3, 1, 2, 2, 4), (3, 16, 7, 2, 3, 1, 1)]


def make(
    channels: int, outputs: int, side: int, stride: int, padding: int, dilation: int, groups: int
) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """A convolution, pixels, and something to add."""
    conv = nn.Conv2d(channels, outputs, side, stride, padding, dilation, groups)
    with torch.no_grad():
        conv.weight.normal_(std=1 / side)
        conv.bias.normal_()
        x = torch.randn(2, channels, 18, 20)
        return conv, x, torch.randn_like(conv(x))


@torch.no_grad()
def expected(conv: nn.Conv2d, x: Tensor, added: Tensor | None) -> Tensor:
    result = copy.deepcopy(conv).double()(x.double())
    return F.relu(result if added is None else result + added.double())


@pytest.mark.parametrize("numbers", CONVOLUTIONS)
@pytest.mark.parametrize("adding", [False, True])
def test_on_a_cpu(numbers: tuple[int, ...], adding: bool) -> None:
    conv, x, added = make(*numbers)
    given = added if adding else None
    result = convolve_relu(conv, x, given)
    torch.testing.assert_close(result.double(), expected(conv, x, given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numbers", CONVOLUTIONS)
def test_what_records_a_graph_knows_the_result(numbers: tuple[int, ...]) -> None:
    with torch._subclasses.FakeTensorMode():
        conv, x, added = make(*numbers)
        x, weight, bias, added = (y.to("cuda", torch.bfloat16) for y in (x, conv.weight, conv.bias, added))
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        result = torch.ops.mask2former.convolve_relu(x, weight, bias, added, *how)
        assert (result.shape, result.dtype, result.device) == (added.shape, torch.bfloat16, added.device)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("numbers", CONVOLUTIONS)
@pytest.mark.parametrize("adding", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_on_a_gpu(numbers: tuple[int, ...], adding: bool, dtype: torch.dtype) -> None:
    conv, x, added = (y.to("cuda", dtype, memory_format=torch.channels_last) for y in make(*numbers))
    given = added if adding else None
    with torch.autocast("cuda", dtype):
        result = convolve_relu(conv, x, given)
    wanted = expected(conv, x, given)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-2, atol=1e-2 * float(wanted.max()))
