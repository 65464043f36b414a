"""Deformable attention as the official release calls it, for pixel decoders that were written with its classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from .deformable_encoder import MSDeformAttnTransformerEncoder

__all__ = [
    "MSDeformAttn",
    "MSDeformAttnFunction",
    "MSDeformAttnTransformerEncoderOnly",
    "ms_deform_attn_core_pytorch",
]


def ms_deform_attn_core_pytorch(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """:func:`mask2former.ops.ms_deform_attn_reference` with shapes (L, 2) as a tensor."""
    return ops.ms_deform_attn_reference(value, _shapes(value_spatial_shapes), sampling_locations, attention_weights)


class MSDeformAttnFunction:
    """:func:`mask2former.ops.ms_deform_attn`, called as an autograd function."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor | None,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Attend, with shapes (L, 2) as a tensor; where levels begin and the step are not read."""
        return ops.ms_deform_attn(value, _shapes(value_spatial_shapes), sampling_locations, attention_weights)


class MSDeformAttn(ops.MSDeformAttn):
    """:class:`mask2former.ops.MSDeformAttn` with the official arguments."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__(d_model, n_levels, n_heads, n_points)
        self.d_model = d_model
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from each query to a few points around its reference point, on every level.

        Args:
            query: (N, Q, C).
            reference_points: (N, Q, L, 2) as (x, y) in 0..1, with offsets in pixels; or (N, Q, L, 4) boxes as (centre
                x, centre y, width, height) in 0..1, with offsets in half boxes over the number of points.
            input_flatten: (N, S, C), the levels flattened and concatenated.
            input_spatial_shapes: (L, 2), height and width of each level.
            input_level_start_index: not read; it follows from the shapes.
            input_padding_mask: (N, S) bool, True at pixels whose value is zero.

        Returns:
            (N, Q, C).
        """
        if reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f"reference_points have shape {tuple(reference_points.shape)}, expected (N, Q, L, 2) or (N, Q, L, 4)."
            )
        shape = (*query.shape[:2], self.n_heads, self.n_levels, self.n_points)
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.n_heads, -1))
        offsets = self.sampling_offsets(query).view(*shape, 2)
        if reference_points.shape[-1] == 4:
            sizes = torch.as_tensor(input_spatial_shapes, device=offsets.device).flip(-1)[:, None]  # (L, 1, 2)
            offsets = offsets / self.n_points * reference_points[:, :, None, :, None, 2:] / 2 * sizes
        attended = ops.fused_ms_deform_attn(
            value,
            _shapes(input_spatial_shapes),
            reference_points[..., :2],
            offsets,
            self.attention_weights(query).view(shape),
        )
        output: Tensor = self.output_proj(attended)
        return output


class MSDeformAttnTransformerEncoderOnly(MSDeformAttnTransformerEncoder):
    """:class:`MSDeformAttnTransformerEncoder` with the official arguments and results."""

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        num_feature_levels: int = 4,
        enc_n_points: int = 4,
    ) -> None:
        if activation != "relu":
            raise ValueError(f"activation is {activation!r}, expected 'relu'.")
        super().__init__(
            embed_dim=d_model,
            dim_feedforward=dim_feedforward,
            num_levels=num_feature_levels,
            num_heads=nhead,
            num_points=enc_n_points,
            num_layers=num_encoder_layers,
            dropout=dropout,
        )
        self.d_model = d_model
        self.nhead = nhead

    def forward(  # type: ignore[override]
        self, srcs: Sequence[Tensor], pos_embeds: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine feature maps.

        Args:
            srcs: L maps (N, C, H_l, W_l).
            pos_embeds: their position encodings.

        Returns:
            Tokens (N, S, C), one level after the other, (height, width) of each level (L, 2), and where it begins (L,).
        """
        maps = super().forward(srcs, pos_embeds)
        shapes = torch.tensor([x.shape[-2:] for x in srcs], device=srcs[0].device)
        areas = shapes.prod(1)
        return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1), shapes, areas.cumsum(0) - areas


def _shapes(spatial_shapes: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in torch.as_tensor(spatial_shapes).tolist()]
