"""Transformer encoder with multi-scale deformable self-attention (Deformable DETR, Section 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import MSDeformAttn
from ..mixed_sizes import pad_maps

__all__ = ["MSDeformAttnTransformerEncoder", "MSDeformAttnTransformerEncoderLayer"]


class MSDeformAttnTransformerEncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network, each with a residual and LayerNorm after it."""

    def __init__(
        self, *, embed_dim: int, dim_feedforward: int, num_levels: int, num_heads: int, num_points: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(embed_dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Map tokens (N, S, C) to tokens (N, S, C); ``valid`` (N, S) is False at padding."""
        attended = self.self_attn(x + pos, reference_points, x, spatial_shapes, valid)
        x = self.norm1(x + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class _LayerStack(nn.Module):
    """Holds the layers one level down, where checkpoints have them (``encoder.layers``)."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class MSDeformAttnTransformerEncoder(nn.Module):
    """Refine several feature maps together.

    Args:
        embed_dim: channels C of every level.
        dim_feedforward: hidden width of the feed-forward networks.
        num_levels: number of feature maps L.
        num_heads: attention heads M.
        num_points: sampling points P per head and level.
        num_layers: encoder layers; 6 in the paper.
        dropout: probability, after attention and in the feed-forward network.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        dim_feedforward: int,
        num_levels: int,
        num_heads: int,
        num_points: int,
        num_layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = _LayerStack(
            [
                MSDeformAttnTransformerEncoderLayer(
                    embed_dim=embed_dim,
                    dim_feedforward=dim_feedforward,
                    num_levels=num_levels,
                    num_heads=num_heads,
                    num_points=num_points,
                    dropout=dropout,
                )
                for _ in range(num_layers)
            ]
        )
        for name, parameter in self.encoder.named_parameters():
            if parameter.dim() > 1 and ".self_attn." not in name:  # deformable attention initialises itself
                nn.init.xavier_uniform_(parameter)
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embed)

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Refine the feature maps.

        Args:
            features: L maps (N, C, H_l, W_l), in any order that stays the same.
            positions: their position encodings, (1 or N, C, H_l, W_l).

        Returns:
            L maps of the same shapes.
        """
        spatial_shapes = _sizes(features)
        reference_points = pixel_centers(spatial_shapes, features[0].device)[None, :, None]  # (1, S, 1, 2)
        return self._refine(features, positions, reference_points)

    def forward_mixed_sizes(
        self, features: Sequence[Sequence[Tensor]], positions: Sequence[Sequence[Tensor]]
    ) -> list[list[Tensor]]:
        """Refine the maps of several batches at once, each as if it were alone.

        Args:
            features: B batches of L maps (N_b, C, H_bl, W_bl).
            positions: their position encodings, (1, C, H_bl, W_bl).

        Returns:
            B batches of L maps of the same shapes.
        """
        repeats = torch.tensor([len(maps[0]) for maps in features], device=features[0][0].device)
        padded = [pad_maps(level) for level in zip(*features, strict=True)]
        padded_positions = [pad_maps(level).repeat_interleave(repeats, dim=0) for level in zip(*positions, strict=True)]
        geometry = [_own_geometry(_sizes(maps), _sizes(padded), repeats.device) for maps in features]
        refined = self._refine(
            padded,
            padded_positions,
            torch.stack([points for points, _ in geometry]).repeat_interleave(repeats, dim=0),
            torch.stack([valid for _, valid in geometry]).repeat_interleave(repeats, dim=0),
        )
        levels = [level.split(repeats.tolist()) for level in refined]
        return [
            [level[b][:, :, :height, :width] for level, (height, width) in zip(levels, _sizes(maps), strict=True)]
            for b, maps in enumerate(features)
        ]

    def _refine(
        self,
        features: Sequence[Tensor],
        positions: Sequence[Tensor],
        reference_points: Tensor,
        valid: Tensor | None = None,
    ) -> list[Tensor]:
        """Run the layers; reference points are (1 or N, S, 1 or L, 2), ``valid`` (N, S) is False at padding."""
        spatial_shapes = _sizes(features)
        tokens = torch.cat([x.flatten(2) for x in features], dim=2).transpose(1, 2)  # (N, S, C)
        pos = torch.cat(
            [p.flatten(2).transpose(1, 2) + embed for p, embed in zip(positions, self.level_embed, strict=True)], dim=1
        )  # (1 or N, S, C)
        for layer in self.encoder.layers:
            tokens = layer(tokens, pos, reference_points, spatial_shapes, valid)
        levels = tokens.transpose(1, 2).split([h * w for h, w in spatial_shapes], dim=2)
        return [level.unflatten(2, shape) for level, shape in zip(levels, spatial_shapes, strict=True)]


def pixel_centers(
    spatial_shapes: Sequence[tuple[int, int]],
    device: torch.device | str | None = None,
    own_shapes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Return the centres of all pixels of all levels, (S, 2) as (x, y) in 0..1, float32.

    Args:
        spatial_shapes: (height, width) of each level.
        device: of the result.
        own_shapes: (height, width) of each level without its padding, which is what 0..1 then means; points in the
            padding are outside of that.
    """
    centers = []
    for (height, width), (own_height, own_width) in zip(spatial_shapes, own_shapes or spatial_shapes, strict=True):
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / own_height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / own_width
        centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))  # (H * W, 2)
    return torch.cat(centers)


def _sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(height, width) of each map."""
    return [(int(x.shape[-2]), int(x.shape[-1])) for x in maps]


def _own_geometry(
    own_shapes: Sequence[tuple[int, int]], spatial_shapes: Sequence[tuple[int, int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the pixels of an image in a padded batch are, and which are its own.

    Args:
        own_shapes: (height, width) of each level of the image.
        spatial_shapes: the same, padded.
        device: of the results.

    Returns:
        Reference points (S, L, 2): for each pixel its place in the image, found again on each padded level. And (S,)
        bool, False at padding.
    """
    centers = pixel_centers(spatial_shapes, device, own_shapes)  # (S, 2)
    own, padded = (torch.tensor(shapes, device=device).flip(-1) for shapes in (own_shapes, spatial_shapes))
    return centers[:, None] * (own / padded), (centers < 1).all(dim=-1)
