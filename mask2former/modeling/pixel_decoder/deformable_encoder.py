"""Transformer encoder with multi-scale deformable self-attention (Deformable DETR, Section 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import MSDeformAttn
from ...ops.linear import linear_relu
from ..row_chunks import in_row_chunks

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
        self, x: Tensor, pos: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Map tokens (N, S, C) to tokens (N, S, C); the other arguments are as in the encoder."""
        attended = self.self_attn(x + pos, reference_points, x, spatial_shapes)
        x = self.norm1(x + self.dropout(attended))
        return in_row_chunks(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(linear_relu(self.linear1, x))
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
        spatial_shapes = [(x.shape[-2], x.shape[-1]) for x in features]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in features], dim=1)  # (N, S, C)
        pos = torch.cat(
            [p.flatten(2).transpose(1, 2) + embed for p, embed in zip(positions, self.level_embed, strict=True)], dim=1
        )  # (1 or N, S, C)
        reference_points = pixel_centers(spatial_shapes, tokens.device)[None, :, None]  # (1, S, 1, 2)
        for layer in self.encoder.layers:
            tokens = layer(tokens, pos, reference_points, spatial_shapes)
        levels = tokens.split([h * w for h, w in spatial_shapes], dim=1)
        # Permuted last: PyTorch then sees that these are `channels_last`, which what follows does without a copy.
        return [x.unflatten(1, shape).permute(0, 3, 1, 2) for x, shape in zip(levels, spatial_shapes, strict=True)]


def pixel_centers(spatial_shapes: Sequence[tuple[int, int]], device: torch.device | str | None = None) -> Tensor:
    """Return the centres of all pixels of all levels, (S, 2) as (x, y) in 0..1, float32."""
    centers = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))  # (H * W, 2)
    return torch.cat(centers)
