"""The native operators against the PyTorch reference."""

import math

import pytest
import torch
from torch import Tensor

from mask2former.ops import ms_deform_attn, ms_deform_attn_reference
from mask2former.ops._library import has_native_kernel

pytestmark = pytest.mark.skipif(
    not has_native_kernel(torch.empty(0)), reason="the native library is not built (python -m mask2former.ops.build)"
)

SHAPES = [(7, 5), (3, 4), (1, 1)]
Inputs = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]


def make_inputs(
    dtype: torch.dtype = torch.float32,
    *,
    shapes: list[tuple[int, int]] = SHAPES,
    images: int = 2,
    queries: int = 11,
    heads: int = 3,
    head_dim: int = 32,
    points: int = 4,
) -> Inputs:
    """Random inputs; a third of the locations lie outside, and some exactly on the edges and on pixels' centres."""
    value = torch.randn(images, sum(h * w for h, w in shapes), heads, head_dim).to(dtype)
    locations = torch.rand(images, queries, heads, len(shapes), points, 2) * 1.4 - 0.2
    special = torch.tensor([-1e30, -1.0, 0.0, 0.5, 1.0, 7.0, 1e30])
    chosen = torch.rand(locations.shape) < 0.2
    locations[chosen] = special[torch.randint(len(special), (int(chosen.sum()),))]
    weights = torch.randn(images, queries, heads, len(shapes) * points).softmax(-1).unflatten(-1, (-1, points))
    return value, shapes, locations, weights


def exact(inputs: Inputs, grad_output: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients of the reference in float64."""
    value, shapes, *rest = inputs
    leaves = [x.double().requires_grad_() for x in (value, *rest)]
    output = ms_deform_attn_reference(leaves[0], shapes, leaves[1], leaves[2])
    return output.detach(), list(torch.autograd.grad(output, leaves, grad_output.double()))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    if not actual.numel():
        return 0.0
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()


def check(inputs: Inputs) -> None:
    """Compares output and gradients; bfloat16 results may be off by their last rounding only."""
    value, shapes, locations, weights = inputs
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    output = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    assert "mask2former" in output.grad_fn.name().lower()  # type: ignore[union-attr]
    assert output.dtype == value.dtype
    grad_output = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    expected, expected_gradients = exact(inputs, grad_output)
    tolerance = 5e-6 if value.dtype == torch.float32 else 2**-8
    assert relative_error(output, expected) < tolerance
    assert relative_error(gradients[0], expected_gradients[0]) < tolerance
    assert gradients[0].dtype == value.dtype
    for actual, wanted in zip(gradients[1:], expected_gradients[1:], strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, wanted) < 5e-6


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@dtypes
@pytest.mark.parametrize("head_dim", [1, 2, 3, 8, 16, 23, 32, 48, 100])
def test_head_dims(dtype: torch.dtype, head_dim: int) -> None:
    check(make_inputs(dtype, head_dim=head_dim))


@dtypes
@pytest.mark.parametrize("points", [1, 3, 5, 8, 11])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_numbers_of_samples(dtype: torch.dtype, points: int, levels: int) -> None:
    check(make_inputs(dtype, shapes=SHAPES[:levels], points=points, head_dim=16))


@pytest.mark.parametrize(("images", "queries", "heads"), [(1, 0, 2), (0, 3, 2), (1, 1, 1), (3, 100, 8)])
def test_sizes(images: int, queries: int, heads: int) -> None:
    check(make_inputs(images=images, queries=queries, heads=heads, head_dim=16))


def test_the_encoder_of_a_whole_image() -> None:
    shapes = [(8, 12), (16, 24), (32, 48)]
    check(make_inputs(shapes=shapes, images=1, queries=sum(math.prod(s) for s in shapes), heads=8))
