"""Multi-scale deformable attention for GPUs in Triton, which PyTorch brings along: for machines without nvcc.

Importing this needs Triton. A program takes a block of queries of one head of one image. It visits their samples one
after the other, level by level, and for each the four pixels around it, with all channels of the head at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward"]

_QUERIES = 32  # of a program
# They change with the image's size; Triton compiles anew for numbers that are 1 or multiples of 16. Of the numbers in a
# tuple Triton 3.9 does so all the same, which makes a few kernels and not one.
_ANY_NUMBER = ["spatial_shapes", "num_queries", "num_pixels"]


def forward(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`mask2former.ops.ms_deform_attn`.

    Args:
        value: (N, S, M, D) float32, float16 or bfloat16.
        spatial_shapes: height, width of level 0, height, width of level 1, ...
        locations: (N, Q, M, L, P, 2) float32.
        weights: (N, Q, M, L, P) float32.

    Returns:
        (N, Q, M * D) in the dtype of ``value``.
    """
    num_images, num_queries, num_heads = locations.shape[:3]
    output = value.new_empty(num_images, num_queries, num_heads * value.shape[-1])
    if output.numel():
        _launch(_forward_kernel, [value, locations, weights, output], value, spatial_shapes, locations)
    return output


def backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; those of the value are added up in no fixed order, in float32."""
    grad_value = torch.zeros_like(value, dtype=torch.float32, memory_format=torch.contiguous_format)
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    if grad_output.numel():
        tensors = [value, locations, weights, grad_output, grad_value, grad_locations, grad_weights]
        _launch(_backward_kernel, tensors, value, spatial_shapes, locations)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _launch(
    kernel: Any, tensors: Sequence[Tensor], value: Tensor, spatial_shapes: Sequence[int], locations: Tensor
) -> None:
    num_images, num_queries, num_heads, num_levels, num_points, _ = locations.shape
    num_pixels, head_dim = value.shape[1], value.shape[3]
    with torch.cuda.device_of(value):  # Triton launches on the current GPU, whichever has the tensors
        kernel[triton.cdiv(num_queries, _QUERIES), num_images * num_heads](
            *(x.contiguous() for x in tensors),
            tuple(spatial_shapes),
            num_queries,
            num_pixels,
            num_heads,
            HEAD_DIM=head_dim,
            LEVELS=num_levels,
            POINTS=num_points,
            CHANNELS=triton.next_power_of_2(head_dim),
            QUERIES=_QUERIES,
        )


@triton.jit
def _rows(num_queries, num_heads, QUERIES: tl.constexpr):
    """The program's image and head, the rows (QUERIES,) of its queries in (N, Q, M), and which of them exist."""
    image = tl.program_id(1) // num_heads
    head = tl.program_id(1) % num_heads
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    rows = (image.to(tl.int64) * num_queries + query) * num_heads + head
    return image, head, rows, query < num_queries


@triton.jit
def _position(locations, index, size, exists):
    """The pixel before a location, and how far the location lies beyond its centre; far outside is near outside."""
    position = tl.load(locations + index, mask=exists, other=-1.0) * size - 0.5
    position = tl.where(position > -2, position, -2.0)  # NaN too
    position = tl.where(position < size + 1, position, size + 1.0)
    first = tl.floor(position)
    return first.to(tl.int32), position - first


@triton.jit
def _read_sample(locations, weights, sample, width, height, exists):
    """Column and row of the pixel before a sample, how far beyond each it lies, and its weight."""
    x, right = _position(locations, 2 * sample, width, exists)
    y, down = _position(locations, 2 * sample + 1, height, exists)
    return x, right, y, down, tl.load(weights + sample, mask=exists, other=0.0)


@triton.jit
def _pixels(x, y, width, height, level_start, exists):
    """Indices of pixels, and which of them there are."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & exists
    return level_start + y * width + x, inside


@triton.jit(do_not_specialize=_ANY_NUMBER)
def _forward_kernel(
    value,
    locations,
    weights,
    output,
    spatial_shapes,
    num_queries,
    num_pixels,
    num_heads,
    HEAD_DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    image, head, rows, exists = _rows(num_queries, num_heads, QUERIES)
    channel = tl.arange(0, CHANNELS)[None, :]
    values = value + (image.to(tl.int64) * num_pixels * num_heads + head) * HEAD_DIM + channel
    total = tl.zeros((QUERIES, CHANNELS), tl.float32)
    level_start = 0
    for level in tl.static_range(LEVELS):
        height, width = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        for point in range(POINTS):
            sample = rows * (LEVELS * POINTS) + (level * POINTS + point)
            x, right, y, down, weight = _read_sample(locations, weights, sample, width, height, exists)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    share = (right if dx else 1 - right) * (down if dy else 1 - down) * weight
                    pixel, inside = _pixels(x + dx, y + dy, width, height, level_start, exists)
                    offsets = pixel[:, None].to(tl.int64) * (num_heads * HEAD_DIM)
                    corner = tl.load(values + offsets, mask=inside[:, None] & (channel < HEAD_DIM), other=0.0)
                    total += share[:, None] * corner.to(tl.float32)
        level_start += height * width
    written = exists[:, None] & (channel < HEAD_DIM)
    tl.store(output + rows[:, None] * HEAD_DIM + channel, total.to(output.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=_ANY_NUMBER)
def _backward_kernel(
    value,
    locations,
    weights,
    grad_output,
    grad_value,
    grad_locations,
    grad_weights,
    spatial_shapes,
    num_queries,
    num_pixels,
    num_heads,
    HEAD_DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    image, head, rows, exists = _rows(num_queries, num_heads, QUERIES)
    channel = tl.arange(0, CHANNELS)[None, :]
    place = (image.to(tl.int64) * num_pixels * num_heads + head) * HEAD_DIM + channel
    read = exists[:, None] & (channel < HEAD_DIM)
    grad = tl.load(grad_output + rows[:, None] * HEAD_DIM + channel, mask=read, other=0.0).to(tl.float32)
    level_start = 0
    for level in tl.static_range(LEVELS):
        height, width = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        for point in range(POINTS):
            sample = rows * (LEVELS * POINTS) + (level * POINTS + point)
            x, right, y, down, weight = _read_sample(locations, weights, sample, width, height, exists)
            grad_x = tl.zeros((QUERIES,), tl.float32)
            grad_y = tl.zeros((QUERIES,), tl.float32)
            grad_weight = tl.zeros((QUERIES,), tl.float32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    across, along = (right if dx else 1 - right), (down if dy else 1 - down)
                    pixel, inside = _pixels(x + dx, y + dy, width, height, level_start, exists)
                    offsets = place + pixel[:, None].to(tl.int64) * (num_heads * HEAD_DIM)
                    there = inside[:, None] & (channel < HEAD_DIM)
                    corner = tl.load(value + offsets, mask=there, other=0.0).to(tl.float32)
                    product = tl.sum(grad * corner, axis=1)
                    grad_weight += across * along * product
                    grad_x += (along if dx else -along) * product
                    grad_y += (across if dy else -across) * product
                    tl.atomic_add(grad_value + offsets, (across * along * weight)[:, None] * grad, mask=there)
            tl.store(grad_weights + sample, grad_weight, mask=exists)
            tl.store(grad_locations + 2 * sample, grad_x * weight * width, mask=exists)
            tl.store(grad_locations + 2 * sample + 1, grad_y * weight * height, mask=exists)
        level_start += height * width
