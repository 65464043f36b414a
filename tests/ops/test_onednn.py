"""Layers by oneDNN in bfloat16 against float64, and when they are asked for."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.ops.convolution import convolve_relu
from mask2former.ops.linear import FasterLinear, linear, linear_relu
from mask2former.ops.onednn import bfloat16_convolution_relu, bfloat16_linear, takes_bfloat16


def has_operators() -> bool:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return takes_bfloat16(torch.ones(1))


pytestmark = pytest.mark.skipif(not has_operators(), reason="PyTorch has no oneDNN here, or that no bfloat16")


@pytest.fixture
def called() -> Iterator[list[str]]:
    """Names of oneDNN's operators that were called."""
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "mkldnn":
                names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield names


def assert_rounded_once(result: Tensor, exact: Tensor) -> None:
    """As near as bfloat16's 8 bits can be, but for float32's error of the sum."""
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-5)


def in_bfloat16(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same numbers as float64, rounded as autocast does."""
    return [None if x is None else x.detach().bfloat16().double() for x in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (30, 7), (2, 5, 16)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@torch.no_grad()
def test_linear(shape: tuple[int, ...], has_bias: bool, relu: bool, dtype: torch.dtype, called: list[str]) -> None:
    layer, x = nn.Linear(shape[-1], 12, bias=has_bias), torch.randn(shape, dtype=dtype)
    exact = F.linear(*in_bfloat16(x, layer.weight, layer.bias))
    layer.__class__ = FasterLinear
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_relu(layer, x) if relu else layer(x)
    assert called == ["_linear_pointwise.default"]
    assert_rounded_once(result, exact.relu() if relu else exact)


@torch.no_grad()
def test_the_numbers_of_a_bias_need_not_be_neighbours() -> None:
    x, weight, bias = (torch.randn(size, dtype=torch.bfloat16) for size in ((30, 7), (12, 7), (24,)))
    strided = bias[::2]
    assert torch.equal(bfloat16_linear(x, weight, strided), bfloat16_linear(x, weight, strided.contiguous()))
    problem = x[None, :, :, None].transpose(1, 2), weight[..., None, None]
    how = (None, (1, 1), (0, 0), (1, 1), 1)
    results = [bfloat16_convolution_relu(*problem, y, *how) for y in (strided, strided.contiguous())]
    assert torch.equal(*results)


# Input and output channels, side of the filter, stride, padding, dilation, groups; height and width.
CONVOLUTIONS = [
    ((16, 24, 3, 2, 1, 1, 1), (18, 21)),
    ((16, 24, 1, 1, 0, 1, 1), (1, 1)),
    ((32, 8, 3, 1, 2, 2, 4), (5, 4)),
    ((3, 1, 7, 2, 3, 1, 1), (30, 20)),
    ((1, 5, 1, 1, 0, 1, 1), (1, 1)),
]
# To which oneDNN adds nothing: in groups, or with one pixel or channel, as which channels could come first or last.
WITHOUT_SUM = CONVOLUTIONS[1:]


@pytest.mark.parametrize(("numbers", "size"), CONVOLUTIONS)
@pytest.mark.parametrize("adding", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_convolution(
    numbers: tuple[int, ...],
    size: tuple[int, int],
    adding: bool,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    called: list[str],
) -> None:
    conv, x = nn.Conv2d(*numbers).to(memory_format=memory_format), torch.randn(2, numbers[0], *size)
    exact = F.conv2d(*in_bfloat16(x, conv.weight, conv.bias), *numbers[3:])
    x, added = (y.to(dtype, memory_format=memory_format) for y in (x, torch.randn(exact.shape)))
    with torch.autocast("cpu", torch.bfloat16):
        result = convolve_relu(conv, x, added if adding else None)
    fused = not (adding and (numbers, size) in WITHOUT_SUM)
    assert called == ["_convolution_pointwise." + ("binary" if adding and fused else "default")]
    exact = (exact + in_bfloat16(added)[0] if adding else exact).relu()
    assert result.is_contiguous(memory_format=torch.channels_last)
    if fused:
        assert_rounded_once(result, exact)
    else:
        torch.testing.assert_close(result.double(), exact, rtol=2**-6, atol=2**-7)


def test_what_it_is_for(called: list[str]) -> None:
    layer, x = nn.Linear(8, 4), torch.randn(5, 8)
    linear(x, layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x, layer.weight, layer.bias).sum().backward()  # gradients
        with torch.no_grad():
            linear(x[:0], layer.weight, layer.bias)  # nothing
            linear(x.double(), layer.weight.double(), layer.bias.double())  # what autocast leaves alone
            with torch.backends.mkldnn.flags(enabled=False):
                linear(x, layer.weight, layer.bias)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        linear_relu(layer, x)
    assert layer.weight.grad is not None
    assert not called


def test_subclasses_do_what_they_do(called: list[str]) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer, x = Doubled(8, 4), torch.randn(5, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_relu(layer, x), layer(x).relu())
    assert not called


def test_graphs_have_pytorchs_functions() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph

    layer, x = FasterLinear(8, 4), torch.randn(5, 8)
    compiled = torch.compile(lambda y: linear_relu(layer, y), backend=backend, fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), linear_relu(layer, x))
    assert len(graphs) == 1
    assert "mkldnn" not in graphs[0].code
