"""Winograd's convolution against PyTorch's in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from other_instructions import run_with_instructions
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from mask2former.ops import _library
from mask2former.ops.onednn import has_onednn
from mask2former.ops.winograd import conv2d, takes_convolution, transform_weight, winograd_conv2d

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)

# N, C, K, H, W: a pixel, sides that tiles divide and do not, and more tiles than are transformed at once.
SIZES = [(1, 16, 32, 1, 1), (2, 32, 16, 3, 5), (1, 64, 64, 8, 4), (3, 16, 48, 9, 14), (2, 16, 16, 70, 67)]
TOLERANCE = 2e-5  # results reach 5


def make(n: int, c: int, k: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, weights, bias."""
    x = torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(k, c, 3, 3) / (3 * c**0.5), torch.randn(k)


def direct(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def exact(*problem: Tensor) -> Tensor:
    return direct(*(x.double() for x in problem))


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).square().mean().sqrt())


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_same_as_a_direct_convolution(size: tuple[int, ...], onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not has_onednn():
        pytest.skip("PyTorch multiplies without oneDNN here")
    monkeypatch.setattr("mask2former.ops.winograd.has_onednn", lambda: onednn)
    x, weight, bias = make(*size)
    result = winograd_conv2d(x, transform_weight(weight), bias)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), exact(x, weight, bias), rtol=0, atol=TOLERANCE)
    contiguous = winograd_conv2d(x.contiguous(), transform_weight(weight), bias)
    torch.testing.assert_close(contiguous, result, rtol=0, atol=0)


def test_as_exact_as_a_direct_convolution() -> None:
    # The sum of hundreds of products is what rounds; the usual points of evaluation would lose three times as much.
    x, weight, bias = make(1, 256, 256, 32, 32)
    expected = exact(x, weight, bias)
    of_direct = error(F.conv2d(x, weight, bias, padding=1), expected)
    assert error(winograd_conv2d(x, transform_weight(weight), bias), expected) < 2 * of_direct


@pytest.mark.parametrize("shape", [(0, 16, 8, 8), (1, 16, 0, 8), (1, 16, 8, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    _, weight, bias = make(1, 16, 32, 1, 1)
    assert winograd_conv2d(torch.zeros(shape), transform_weight(weight), bias).shape == (shape[0], 32, *shape[2:])


def test_without_channels_there_is_the_bias_alone() -> None:
    bias = torch.randn(32)
    result = winograd_conv2d(torch.zeros(1, 0, 8, 8), torch.zeros(36, 32, 0), bias)
    assert torch.equal(result, bias[:, None, None].expand(1, 32, 8, 8))


def test_what_is_not_a_number_stays_in_its_tiles() -> None:
    x, weight, bias = make(2, 16, 16, 12, 12)
    weight = transform_weight(weight)
    before = winograd_conv2d(x, weight, bias)
    x[1, 3, 5, 6] = torch.nan
    after = winograd_conv2d(x, weight, bias)
    assert after[1, :, 4:7, 5:8].isnan().all()
    after[1, :, 4:8, 4:8] = before[1, :, 4:8, 4:8]
    assert torch.equal(after, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_make_no_difference(threads: int) -> None:
    x, weight, bias = make(*SIZES[-1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = winograd_conv2d(x, transform_weight(weight), bias)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), exact(x, weight, bias), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("takes", "conv"),
    [
        (True, nn.Conv2d(16, 32, 3, padding=1)),
        (False, nn.Conv2d(16, 32, 1)),
        (False, nn.Conv2d(16, 32, 3)),
        (False, nn.Conv2d(16, 32, 3, padding="same")),
        (False, nn.Conv2d(16, 32, 3, padding=1, stride=2)),
        (False, nn.Conv2d(16, 32, 3, padding=1, dilation=2)),
        (False, nn.Conv2d(16, 32, 3, padding=1, groups=16)),
        (False, nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect")),
        (False, nn.Conv2d(3, 32, 3, padding=1)),
        (False, nn.Conv2d(16, 17, 3, padding=1)),
    ],
)
def test_convolutions_that_it_takes(takes: bool, conv: nn.Conv2d) -> None:
    assert takes_convolution(conv) is takes


def test_opcheck() -> None:
    x, weight, bias = make(*SIZES[1])
    arguments = (x.permute(0, 2, 3, 1), transform_weight(weight), bias)
    torch.library.opcheck(torch.ops.mask2former.winograd_conv2d.default, arguments)


def test_wrong_arguments() -> None:
    x, weight, bias = make(1, 16, 32, 4, 4)
    transformed = transform_weight(weight)
    with pytest.raises(ValueError, match=r"multiples of 16, not \(32, 16, 3, 2\)"):
        transform_weight(weight[..., :2])
    with pytest.raises(ValueError, match=r"multiples of 16, not \(32, 15, 3, 3\)"):
        transform_weight(weight[:, 1:])
    with pytest.raises(RuntimeError, match="must be float32 on the CPU"):
        winograd_conv2d(x.double(), transformed, bias)
    with pytest.raises(RuntimeError, match="expected pixels"):
        winograd_conv2d(x[:, :15], transformed, bias)
    with pytest.raises(RuntimeError, match="expected pixels"):
        winograd_conv2d(x, transformed[1:], bias)
    with pytest.raises(RuntimeError, match="multiples of 16, not 16 and 30"):
        winograd_conv2d(x, transformed[:, :30], bias[:30])


# With as many pixels as the algorithm is used for: sides that tiles divide and do not, and several rounds of tiles.
TRAINED_SIZES = [(1, 16, 32, 32, 32), (3, 48, 16, 21, 18), (2, 16, 16, 70, 67)]


def gradients(convolve: Callable[[Tensor, Tensor, Tensor], Tensor], *problem: Tensor) -> list[Tensor]:
    """A convolution's result, and gradients of a weighted sum of it with respect to pixels, weights and bias."""
    x, weight, bias = (x.detach().requires_grad_() for x in problem)
    result = convolve(x, weight, bias)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    return [result.detach(), *torch.autograd.grad((weights * result).sum(), [x, weight, bias])]


@pytest.fixture
def gradients_of_weights(calls_of: Callable[[str], list[torch.Size]]) -> list[torch.Size]:
    """Shapes of the pixels that the operator was called with."""
    return calls_of("winograd_weight_gradient")


@pytest.mark.parametrize("size", TRAINED_SIZES)
def test_gradients(size: tuple[int, ...], gradients_of_weights: list[torch.Size]) -> None:
    problem = make(*size)
    expected = gradients(direct, *(x.double() for x in problem))
    actual = gradients(conv2d, *problem)
    assert len(gradients_of_weights) == 1
    for of_ours, of_direct in zip(actual, expected, strict=True):
        torch.testing.assert_close(of_ours.double(), of_direct, rtol=0, atol=4e-6 * float(of_direct.abs().max()))


def test_rounding_errors_of_gradients() -> None:
    # Not compared with a direct convolution's, which are three times as large on one processor as on another.
    problem = make(2, 64, 64, 64, 64)
    expected = gradients(direct, *(x.double() for x in problem))
    for ours, exactly in zip(gradients(conv2d, *problem), expected, strict=True):
        assert error(ours, exactly) < 2e-6 * exactly.square().mean().sqrt()


def test_only_the_gradients_that_are_needed(gradients_of_weights: list[torch.Size]) -> None:
    x, weight, _ = make(*TRAINED_SIZES[0])
    conv2d(x.requires_grad_(), weight, None).sum().backward()
    assert x.grad is not None
    assert not gradients_of_weights
    x = x.detach()
    conv2d(x, weight.requires_grad_(), None).sum().backward()
    assert weight.grad is not None
    assert gradients_of_weights == [(1, 32, 32, 16)]


def test_few_pixels_are_convolved_directly(gradients_of_weights: list[torch.Size]) -> None:
    x, weight, bias = make(1, 16, 16, 31, 33)
    weight.requires_grad_()
    result = conv2d(x, weight, bias)
    assert torch.equal(result, F.conv2d(x, weight, bias, padding=1))
    result.sum().backward()
    assert not gradients_of_weights


def test_recorded_graphs_have_only_pytorch_operators() -> None:
    x, weight, bias = make(*TRAINED_SIZES[0])
    traced = torch.jit.trace(lambda x: conv2d(x, weight, bias), x, check_trace=False)
    assert "mask2former::" not in str(traced.inlined_graph)
    compiled = torch.compile(lambda x, weight: conv2d(x, weight, bias), backend="aot_eager", fullgraph=True)
    compiled(x, weight.requires_grad_()).sum().backward()
    assert weight.grad is not None


def test_tensors_without_values_leave_nothing_behind() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, weight, bias = make(*TRAINED_SIZES[0])
        conv2d(x, weight.requires_grad_(), bias).sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape
    assert {type(x) for x in gradients(conv2d, *make(*TRAINED_SIZES[0]))} == {Tensor}


def test_second_derivatives_are_refused() -> None:
    x, weight, bias = make(*TRAINED_SIZES[0])
    (grad,) = torch.autograd.grad(conv2d(x.requires_grad_(), weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_opcheck_of_the_gradient() -> None:
    torch.library.opcheck(
        torch.ops.mask2former.winograd_weight_gradient.default, (torch.randn(2, 5, 9, 32), torch.randn(2, 5, 9, 16))
    )


def test_gradient_of_nothing() -> None:
    gradient = torch.ops.mask2former.winograd_weight_gradient(torch.randn(0, 5, 9, 32), torch.randn(0, 5, 9, 16))
    assert torch.equal(gradient, torch.zeros(36, 16, 32))


def test_wrong_arguments_of_the_gradient() -> None:
    operator = torch.ops.mask2former.winograd_weight_gradient
    pixels = torch.randn(1, 4, 5, 16)
    with pytest.raises(RuntimeError, match="must be float32 on the CPU"):
        operator(pixels, pixels.double())
    for wrong in (pixels[0], pixels[:, :3], torch.randn(2, 4, 5, 16)):
        with pytest.raises(RuntimeError, match="expected pixels"):
            operator(pixels, wrong)
    with pytest.raises(RuntimeError, match="multiples of 16, not 16 and 15"):
        operator(pixels, pixels[..., :15])


OTHER_INSTRUCTIONS = "results.extend(operators.winograd_conv2d(*call) for call in calls)"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    problems = [make(*size) for size in SIZES]
    calls = [(x.permute(0, 2, 3, 1), transform_weight(weight), bias) for x, weight, bias in problems]
    results = run_with_instructions(capability, OTHER_INSTRUCTIONS, calls, tmp_path)
    for result, problem in zip(results, problems, strict=True):
        torch.testing.assert_close(result.permute(0, 3, 1, 2).double(), exact(*problem), rtol=0, atol=TOLERANCE)


OTHER_INSTRUCTIONS_OF_GRADIENTS = "results.extend(operators.winograd_weight_gradient(*call) for call in calls)"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_gradients_by_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls = [(torch.randn(n, h, w, c), torch.randn(n, h, w, k)) for n, c, k, h, w in SIZES]
    results = run_with_instructions(capability, OTHER_INSTRUCTIONS_OF_GRADIENTS, calls, tmp_path)
    for result, call in zip(results, calls, strict=True):
        expected = torch.ops.mask2former.winograd_weight_gradient(*call)
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
