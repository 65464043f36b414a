"""Winograd's convolution against PyTorch's in float64."""

from pathlib import Path

import pytest
import torch
from other_instructions import run_with_instructions
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.ops import _library
from mask2former.ops.winograd import has_native_winograd, takes_convolution, transform_weight, winograd_conv2d

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


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).square().mean().sqrt())


@pytest.mark.parametrize("size", SIZES)
def test_same_as_a_direct_convolution(size: tuple[int, ...]) -> None:
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


def test_what_it_is_for() -> None:
    x = torch.zeros(1, 16, 4, 4)
    assert has_native_winograd(x)
    assert not has_native_winograd(x.double())
    assert not has_native_winograd(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not has_native_winograd(x)
    x.requires_grad_()
    assert not has_native_winograd(x)
    with torch.no_grad():
        assert has_native_winograd(x)


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
        winograd_conv2d(x, transformed[..., :30].contiguous(), bias[:30])


OTHER_INSTRUCTIONS = "results.extend(operators.winograd_conv2d(*call) for call in calls)"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    problems = [make(*size) for size in SIZES]
    calls = [(x.permute(0, 2, 3, 1), transform_weight(weight), bias) for x, weight, bias in problems]
    results = run_with_instructions(capability, OTHER_INSTRUCTIONS, calls, tmp_path)
    for result, problem in zip(results, problems, strict=True):
        torch.testing.assert_close(result.permute(0, 3, 1, 2).double(), exact(*problem), rtol=0, atol=TOLERANCE)
