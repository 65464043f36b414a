"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, equation 3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._library import has_native_kernel, native_fused_ms_deform_attn, native_ms_deform_attn
from ._triton import has_triton_kernel, triton_ms_deform_attn
from .gathered_attention import avoids_grid_sample, ms_deform_attn_gathered

__all__ = ["MSDeformAttn", "fused_ms_deform_attn", "ms_deform_attn", "ms_deform_attn_reference"]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum values bilinearly sampled at a few points of each level, weighted by attention.

    Args:
        value: (N, S, M, D) floating point; the levels' pixels in row-major order, one level after the other.
        spatial_shapes: (height, width) of each of the L levels, in the order of ``value``; their areas add up to S.
        sampling_locations: (N, Q, M, L, P, 2) points as (x, y), where 0 and 1 are the outer edges of a level, so the
            centre of its first pixel is (0.5 / W, 0.5 / H). Outside the level the value is zero.
        attention_weights: (N, Q, M, L, P), usually non-negative with sum 1 over (L, P).

    Returns:
        (N, Q, M * D) in the dtype of ``value``; sums are accumulated in float32 (float64 for float64 values).

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    if has_native_kernel(value):
        return native_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
    if has_triton_kernel(value):
        return triton_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
    if avoids_grid_sample():
        return ms_deform_attn_gathered(value, spatial_shapes, sampling_locations, attention_weights)
    return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """:func:`ms_deform_attn` in plain PyTorch: runs, differentiates and exports everywhere."""
    num_images, _, num_heads, head_dim = value.shape
    num_queries = sampling_locations.shape[1]
    compute_dtype = torch.promote_types(value.dtype, torch.float32)
    grids = (2 * sampling_locations.to(compute_dtype) - 1).transpose(1, 2).flatten(0, 1)  # (N*M, Q, L, P, 2) in -1..1
    weights = attention_weights.to(compute_dtype).transpose(1, 2).flatten(0, 1)  # (N*M, Q, L, P)

    output = value.new_zeros((num_images * num_heads, head_dim, num_queries), dtype=compute_dtype)
    levels = value.split([height * width for height, width in spatial_shapes], dim=1)
    for level, (level_value, (height, width)) in enumerate(zip(levels, spatial_shapes, strict=True)):
        image = level_value.to(compute_dtype).permute(0, 2, 3, 1).reshape(-1, head_dim, height, width)  # (N*M, D, H, W)
        sampled = F.grid_sample(image, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (sampled * weights[:, None, :, level]).sum(-1)  # (N*M, D, Q)
    output = output.view(num_images, num_heads * head_dim, num_queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """:func:`ms_deform_attn` of what a network predicts: finds the locations and the attention's softmax itself.

    Args:
        value: (N, S, M, D).
        spatial_shapes: (height, width) of each of the L levels.
        reference_points: (1 or N, Q, 1 or L, 2) as (x, y) in 0..1, floating point.
        sampling_offsets: (N, Q, M, L, P, 2) from the reference point, as (x, y) in pixels of the level.
        attention_logits: (N, Q, M, L, P).

    Returns:
        (N, Q, M * D) in the dtype of ``value``.

    Raises:
        ValueError: if the shapes do not fit together, or reference points are not floating point or elsewhere.
    """
    _check_shapes(value, spatial_shapes, sampling_offsets, attention_logits)
    _check_reference_points(reference_points, value, attention_logits)
    if has_native_kernel(value):
        return native_fused_ms_deform_attn(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    # Locations stay in float32 under autocast: bfloat16 resolves only 1/256 of an image's width.
    dtype = torch.promote_types(value.dtype, torch.float32)
    offsets, logits = sampling_offsets.to(dtype), attention_logits.to(dtype)
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    # Filled, not made of a list: an exported graph keeps the sizes symbolic, and a GPU is not waited for.
    pixels = torch.stack([offsets.new_full((), size) for height, width in spatial_shapes for size in (width, height)])
    locations = reference_points[:, :, None, :, None, :] + offsets / pixels.view(-1, 1, 2)
    return ms_deform_attn(value, spatial_shapes, locations, weights)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections.

    Args:
        embed_dim: channels C of queries, values and output; a multiple of ``num_heads``.
        num_levels: L.
        num_heads: M.
        num_points: sampling points P per head and level.

    Raises:
        ValueError: if ``embed_dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, embed_dim: int = 256, num_levels: int = 3, num_heads: int = 8, num_points: int = 4) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"deformable attention splits its channels over the heads, but {embed_dim} channels do not divide by "
                f"{num_heads} heads; choose MODEL.SEM_SEG_HEAD.CONVS_DIM as a multiple of the number of heads."
            )
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Points start on rays, one direction a head, one more pixel out for each point; attention starts uniform."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (M, 2)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = rays[:, None, None] * steps[None, None, :, None]  # (M, 1, P, 2) in pixels of the level
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, reference_points: Tensor, value: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend from each query to a few points around its reference point, on every level.

        Args:
            query: (N, Q, C).
            reference_points: (1 or N, Q, 1 or L, 2) as (x, y) in 0..1.
            value: (N, S, C), the levels flattened and concatenated.
            spatial_shapes: (height, width) of each level.

        Returns:
            (N, Q, C).
        """
        num_images, num_queries, _ = query.shape
        points_shape = (num_images, num_queries, self.num_heads, self.num_levels, self.num_points)
        values = self.value_proj(value).unflatten(-1, (self.num_heads, -1))  # (N, S, M, D)
        offsets = self.sampling_offsets(query).view(*points_shape, 2)
        logits = self.attention_weights(query).view(points_shape)
        return self.output_proj(fused_ms_deform_attn(values, spatial_shapes, reference_points, offsets, logits))


def _check_shapes(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], points: Tensor, attention: Tensor) -> None:
    """Check what both operators take: ``points`` are locations or offsets, ``attention`` is weights or logits."""
    if (value.dim(), points.dim(), attention.dim()) != (4, 6, 5):
        raise ValueError(
            "ms_deform_attn expects value (N, S, M, D), sampling locations or offsets (N, Q, M, L, P, 2) and attention "
            f"weights or logits (N, Q, M, L, P), got shapes {tuple(value.shape)}, {tuple(points.shape)} and "
            f"{tuple(attention.shape)}."
        )
    pixels = sum(height * width for height, width in spatial_shapes)
    if pixels != value.shape[1]:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} hold {pixels} pixels, but value has {value.shape[1]} of them; "
            "flatten and concatenate the levels in the order of spatial_shapes."
        )
    num_images, _, num_heads, num_levels, _ = attention.shape
    if (
        tuple(points.shape) != (*attention.shape, 2)
        or num_levels != len(spatial_shapes)
        or (num_images, num_heads) != (value.shape[0], value.shape[2])
    ):
        raise ValueError(
            f"value {tuple(value.shape)}, {len(spatial_shapes)} levels, sampling locations or offsets "
            f"{tuple(points.shape)} and attention weights or logits {tuple(attention.shape)} disagree; expected "
            "(N, S, M, D), L, (N, Q, M, L, P, 2) and (N, Q, M, L, P)."
        )


def _check_reference_points(points: Tensor, value: Tensor, attention: Tensor) -> None:
    num_images, num_queries, _, num_levels, _ = attention.shape
    shape = tuple(points.shape)
    fits = (
        len(shape) == 4
        and (shape[0] == 1 or shape[0] == num_images)
        and shape[1] == num_queries
        and (shape[2] == 1 or shape[2] == num_levels)
        and shape[3] == 2
    )
    if not (fits and points.is_floating_point() and points.device == value.device):
        raise ValueError(
            f"reference_points are {shape} {points.dtype} on {points.device}, expected (1 or N, Q, 1 or L, 2) with N = "
            f"{num_images}, Q = {num_queries} and L = {num_levels}, floating point, on {value.device} as value is."
        )
