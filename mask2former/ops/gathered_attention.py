"""Multi-scale deformable attention by lookups of rows, for readers of exported graphs that sample images wrongly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

__all__ = ["avoids_grid_sample", "ms_deform_attn_gathered", "without_grid_sample"]

_avoids_grid_sample = False


def avoids_grid_sample() -> bool:
    """Whether :func:`without_grid_sample` is in force."""
    return _avoids_grid_sample


@contextmanager
def without_grid_sample() -> Iterator[None]:
    """What is exported meanwhile, in any thread, has no ``grid_sample`` in its deformable attention."""
    global _avoids_grid_sample  # torch.compile can read it, unlike a ContextVar
    before, _avoids_grid_sample = _avoids_grid_sample, True
    try:
        yield
    finally:
        _avoids_grid_sample = before


def ms_deform_attn_gathered(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """:func:`~mask2former.ops.ms_deform_attn` in lookups, products and sums, which every runtime has."""
    num_images, num_pixels, num_heads, head_dim = value.shape
    num_queries = sampling_locations.shape[1]
    compute_dtype = torch.promote_types(value.dtype, torch.float32)
    rows = value.to(compute_dtype).reshape(-1, head_dim)  # (N*S*M, D)
    images = torch.arange(num_images, device=value.device)[:, None, None, None] * (num_pixels * num_heads)
    first_rows = images + torch.arange(num_heads, device=value.device)[:, None]  # (N, 1, M, 1)

    output = rows.new_zeros(num_images * num_queries * num_heads, 1, head_dim)
    first_pixel = 0
    for level, (height, width) in enumerate(spatial_shapes):
        x, y = sampling_locations[:, :, :, level].to(compute_dtype).unbind(-1)  # (N, Q, M, P)
        corners, weights = [], []
        for (y_corner, y_weight), (x_corner, x_weight) in product(_neighbours(y, height), _neighbours(x, width)):
            corners.append((first_pixel + y_corner * width + x_corner) * num_heads + first_rows)
            weights.append(y_weight * x_weight * attention_weights[:, :, :, level])
        sampled = rows[torch.cat(corners, dim=-1).flatten()].view(output.shape[0], -1, head_dim)  # 4 P rows each
        output = output + torch.cat(weights, dim=-1).view(output.shape[0], 1, -1) @ sampled
        first_pixel = first_pixel + height * width
    return output.view(num_images, num_queries, num_heads * head_dim).to(value.dtype)


def _neighbours(location: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The two pixels around locations in 0..1 of an axis: indices, and weights, which are 0 outside of the axis."""
    coordinate = location * length - 0.5
    before = coordinate.floor()
    for index, weight in ((before, before + 1 - coordinate), (before + 1, coordinate - before)):
        inside = (index >= 0) & (index < length)
        yield index.clamp(min=0).clamp(max=length - 1).long(), torch.where(inside, weight, 0.0)
