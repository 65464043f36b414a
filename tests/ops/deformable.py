"""Inputs of multi-scale deformable attention, and how its results are compared."""

from collections.abc import Callable

import torch
from torch import Tensor

Shapes = list[tuple[int, int]]
SHAPES: Shapes = [(7, 5), (3, 4), (1, 1)]


def make_inputs(
    dtype: torch.dtype = torch.float32,
    *,
    shapes: Shapes = SHAPES,
    images: int = 2,
    queries: int = 11,
    heads: int = 3,
    head_dim: int = 32,
    points: int = 4,
) -> tuple[Shapes, list[Tensor]]:
    """Random inputs; a third of the locations lie outside, and some exactly on the edges and on pixels' centres."""
    value = torch.randn(images, sum(h * w for h, w in shapes), heads, head_dim).to(dtype)
    locations = torch.rand(images, queries, heads, len(shapes), points, 2) * 1.4 - 0.2
    special = torch.tensor([-1e30, -1.0, 0.0, 0.5, 1.0, 7.0, 1e30])
    chosen = torch.rand(locations.shape) < 0.2
    locations[chosen] = special[torch.randint(len(special), (int(chosen.sum()),))]
    weights = torch.randn(images, queries, heads, len(shapes) * points).softmax(-1).unflatten(-1, (-1, points))
    return shapes, [value, locations, weights]


def make_fused_inputs(
    dtype: torch.dtype = torch.float32, *, reference_images: int = 1, reference_levels: int = 1, **sizes: int
) -> tuple[Shapes, list[Tensor]]:
    """Random inputs of the fused operator."""
    shapes, (value, locations, weights) = make_inputs(dtype, **sizes)  # type: ignore[arg-type]
    reference_points = torch.rand(reference_images, locations.shape[1], reference_levels, 2)
    return shapes, [value, reference_points, torch.randn(locations.shape) * 3, torch.randn(weights.shape) * 5]


def run(
    function: Callable[..., Tensor], shapes: Shapes, tensors: list[Tensor], grad_output: Tensor | None = None
) -> list[Tensor]:
    """The function's output, and its gradient with respect to every tensor."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(leaves[0], shapes, *leaves[1:])
    grad_output = torch.ones_like(output) if grad_output is None else grad_output.to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest number."""
    assert actual.shape == expected.shape
    if not actual.numel():
        return 0.0
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-6)).item()
