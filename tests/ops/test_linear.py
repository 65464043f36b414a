"""Linear layers by oneDNN against PyTorch's in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from mask2former.ops import _library
from mask2former.ops.linear import FasterLinear, has_native_float32, linear, linear_relu
from mask2former.ops.onednn import has_onednn

pytestmark = [
    pytest.mark.skipif(
        not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
    ),
    pytest.mark.skipif(not has_onednn(), reason="PyTorch multiplies without oneDNN here"),
]

# Shapes of x, and how many channels there are to be.
SIZES = [((256, 3), 5), ((2, 131, 64), 32), ((1, 20, 15, 48), 1), ((1024, 256), 100)]


def make(shape: tuple[int, ...], channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weights, bias."""
    return torch.randn(shape), torch.randn(channels, shape[-1]) / shape[-1] ** 0.5, torch.randn(channels)


def exact(*problem: Tensor) -> Tensor:
    return F.linear(*(x.double() for x in problem))


@pytest.fixture(autouse=True)
def _little(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is asked for little, too, but by tests of that."""
    if "little" not in request.node.name:
        monkeypatch.setattr("mask2former.ops.linear._FEW_MULTIPLICATIONS", 1)


@pytest.fixture
def called(calls_of: Callable[[str], list[torch.Size]]) -> list[torch.Size]:
    """Shapes that the operator was called with."""
    return calls_of("linear")


@pytest.mark.parametrize(("shape", "channels"), SIZES)
def test_same_as_pytorch(shape: tuple[int, ...], channels: int, called: list[torch.Size]) -> None:
    problem = make(shape, channels)
    result = linear(*problem)
    assert called == [shape]
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), exact(*problem), rtol=0, atol=5e-6)
    without = linear(*problem[:2])
    torch.testing.assert_close(without.double(), exact(*problem[:2]), rtol=0, atol=5e-6)


def test_layouts_make_no_difference() -> None:
    x, weight, bias = make((3, 128, 32), 16)
    expected = linear(x, weight, bias)
    turned = linear(x.transpose(0, 1).contiguous().transpose(0, 1), weight.t().contiguous().t(), bias.repeat(2)[16:])
    assert torch.equal(turned, expected)


def test_the_numbers_of_a_bias_need_not_be_neighbours() -> None:
    x, weight, bias = make((3, 128, 32), 16)
    for strided in (bias.repeat_interleave(2)[::2], bias[:1].expand(16)):
        assert torch.equal(linear(x, weight, strided), linear(x, weight, strided.contiguous()))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("shape", "channels"), SIZES)
def test_gradients(shape: tuple[int, ...], channels: int, threads: int, called: list[torch.Size]) -> None:
    problem = make(shape, channels)
    expected = gradients(F.linear, *(x.double() for x in problem))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        actual = gradients(linear, *problem)
    finally:
        torch.set_num_threads(before)
    assert called == [shape, (*shape[:-1], channels)]
    for of_ours, of_pytorch in zip(actual, expected, strict=True):
        torch.testing.assert_close(of_ours.double(), of_pytorch, rtol=0, atol=3e-6 * float(of_pytorch.abs().max()))


def gradients(function: Callable[[Tensor, Tensor, Tensor], Tensor], *problem: Tensor) -> list[Tensor]:
    """A function's result, and gradients of a weighted sum of it."""
    problem = tuple(x.detach().requires_grad_() for x in problem)
    result = function(*problem)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    return [result.detach(), *torch.autograd.grad((weights * result).sum(), problem)]


def test_only_the_gradients_that_are_needed(called: list[torch.Size]) -> None:
    x, weight, _ = make((300, 8), 4)
    linear(x, weight.requires_grad_()).sum().backward()
    assert weight.grad is not None
    assert called == [(300, 8)]
    called.clear()
    linear(x.requires_grad_(), weight.detach()).sum().backward()
    assert x.grad is not None
    assert called == [(300, 8), (300, 4)]


def test_results_may_be_written_into() -> None:
    x, weight, bias = make((2, 200, 16), 8)
    expected = torch.autograd.grad(F.linear(x, weight.requires_grad_(), bias).relu().sum(), weight)
    result = linear(x, weight, bias)
    assert not result._is_view()  # or gradients would be copied on the way
    actual = torch.autograd.grad(result.relu_().sum(), weight)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "channels"), [((255, 256), 256), ((300, 8), 4), ((8,), 4), ((0, 8), 4), ((5, 0, 8), 4), ((300, 8), 0)]
)
def test_little_is_multiplied_by_pytorch(shape: tuple[int, ...], channels: int, called: list[torch.Size]) -> None:
    problem = (torch.randn(shape), torch.randn(channels, shape[-1]), torch.randn(channels))
    assert torch.equal(linear(*problem), F.linear(*problem))
    assert not called


@pytest.mark.parametrize(("shape", "channels"), [((256, 256), 256), ((32, 256), 2048), ((8, 2, 2048), 512)])
def test_no_longer_little(shape: tuple[int, ...], channels: int, called: list[torch.Size]) -> None:
    linear(*make(shape, channels))
    assert called == [shape]


@pytest.mark.parametrize(("shape", "channels"), [((0, 8), 4), ((300, 0), 4), ((300, 8), 0)])
def test_nothing_is_multiplied_by_pytorch(shape: tuple[int, ...], channels: int, called: list[torch.Size]) -> None:
    problem = (torch.randn(shape), torch.randn(channels, shape[-1]), torch.randn(channels))
    assert torch.equal(linear(*problem), F.linear(*problem))
    assert not called


def test_what_it_is_for(called: list[torch.Size]) -> None:
    problem = make((256, 8), 4)
    assert has_native_float32(problem[0])
    others = [[x.double() for x in problem], [x.to("meta") for x in problem]]
    for other in others:
        assert not has_native_float32(other[0])
        assert linear(*other).dtype == other[0].dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not has_native_float32(problem[0])
        assert linear(*problem).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(*problem), F.linear(*problem))
    assert not called


class Doubled(Tensor):
    """Weights that do one of PyTorch's functions in their own way, as quantised ones."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result.as_subclass(Tensor) if func is F.linear else result


@pytest.mark.parametrize("is_bfloat16", [False, True])
def test_weights_of_a_class_of_their_own(is_bfloat16: bool, called: list[torch.Size]) -> None:
    x, weight, bias = make((256, 3), 5)
    layer = FasterLinear(3, 5)
    layer.weight = nn.Parameter(weight.as_subclass(Doubled), requires_grad=False)  # type: ignore[assignment]
    layer.bias = nn.Parameter(bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        expected = 2 * F.linear(x, weight, bias)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(linear_relu(layer, x), expected.relu())
    assert not called


def test_recorded_graphs() -> None:
    x, weight, bias = make((300, 8), 4)
    program = torch.export.export(Linear(), (x, weight, bias))
    assert not [node for node in program.graph.nodes if "mask2former" in str(node.target)]
    assert "mask2former::" not in str(torch.jit.trace(linear, (x, weight, bias), check_trace=False).inlined_graph)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(linear, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias))
    assert "mask2former.linear" in graphs[0].code
    del graphs[:]
    torch.compiler.reset()
    compiled = torch.compile(linear, backend=backend, fullgraph=True, dynamic=True)
    for rows in (300, 20, 0):  # one graph for all of them
        x = torch.randn(rows, 8)
        torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias))
    assert len(graphs) <= 2  # none has a graph of its own
    compiled(x, weight.requires_grad_(), bias).sum().backward()
    assert weight.grad is not None


class Linear(torch.nn.Module):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(x, weight, bias)


def test_tensors_without_values() -> None:
    with FakeTensorMode():
        x, weight, bias = make((2, 300, 8), 4)
        result = linear(x, weight.requires_grad_(), bias)
        assert result.shape == (2, 300, 4)
        result.sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape


def test_second_derivatives_are_refused() -> None:
    x, weight, bias = make((300, 8), 4)
    (grad,) = torch.autograd.grad(linear(x.requires_grad_(), weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("has_bias", [True, False])
def test_opcheck(has_bias: bool) -> None:
    x, weight, bias = make((3, 5, 8), 4)
    torch.library.opcheck(torch.ops.mask2former.linear.default, (x, weight, bias if has_bias else None))


def test_wrong_arguments() -> None:
    operator = torch.ops.mask2former.linear
    x, weight, bias = make((6, 8), 4)
    for wrong in ((x.double(), weight, bias), (x, weight.bfloat16(), bias), (x, weight, bias.half())):
        with pytest.raises(RuntimeError, match="must be float32 on the CPU"):
            operator(*wrong)
    for wrong in ((x[:, 1:], weight, bias), (x, weight[0], bias), (x, weight, bias[1:]), (x.sum(), weight, bias)):
        with pytest.raises(RuntimeError, match=r"expected x \(\.\.\., C\), weights \(K, C\)"):
            operator(*wrong)
