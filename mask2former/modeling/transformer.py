"""DETR's Transformer (Carion et al., ECCV 2020): every layer adds positions to queries and keys."""

from collections.abc import Callable

from torch import Tensor, nn

from ..ops.linear import linear_relu
from .attention import MultiheadAttention

__all__ = [
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "init_matrices",
]


class _Layer(nn.Module):
    """Sub-layers with a residual each, and LayerNorm after the sum, or before the sub-layer if ``pre_norm``."""

    def __init__(
        self, embed_dim: int, num_heads: int, dim_feedforward: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, num_heads, dropout)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def _residual(self, x: Tensor, norm: nn.Module, sub_layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sub_layer(norm(x)))
        return norm(x + self.dropout(sub_layer(x)))

    def _self_attention(self, x: Tensor, norm: nn.Module, pos: Tensor) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            placed = y + pos
            return self.self_attn(placed, placed, y)

        return self._residual(x, norm, attend)

    def _feed_forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        return self._residual(x, norm, lambda y: self.linear2(self.dropout(linear_relu(self.linear1, y))))


class TransformerEncoderLayer(_Layer):
    """Self-attention, then a feed-forward network."""

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Map tokens (N, S, C) with positions (1 or N, S, C) to tokens (N, S, C)."""
        x = self._self_attention(x, self.norm1, pos)
        return self._feed_forward(x, self.norm2)


class TransformerDecoderLayer(_Layer):
    """Self-attention of the queries, cross-attention to the pixels, then a feed-forward network."""

    def __init__(
        self, embed_dim: int, num_heads: int, dim_feedforward: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__(embed_dim, num_heads, dim_feedforward, dropout, pre_norm)
        self.multihead_attn = MultiheadAttention(embed_dim, num_heads, dropout)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor) -> Tensor:
        """Map queries (N, Q, C) to (N, Q, C); the other arguments are as in :class:`TransformerDecoder`."""
        x = self._self_attention(x, self.norm1, query_pos)
        x = self._residual(x, self.norm2, lambda y: self.multihead_attn(y + query_pos, memory + pos, memory))
        return self._feed_forward(x, self.norm3)


class TransformerEncoder(nn.Module):
    """Refine the pixels of one feature map by global self-attention; no layers leave it as it is.

    Args:
        num_layers: may be 0.
        embed_dim: channels C.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability, in attention, after each sub-layer and in the feed-forward network.
        pre_norm: LayerNorm before each sub-layer, and one after the last layer.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        embed_dim: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(embed_dim, num_heads, dim_feedforward, dropout, pre_norm) for _ in range(num_layers)
        )
        # Without it, what pre-norm layers add up would leave them unnormalised.
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        init_matrices(self)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Map tokens (N, S, C) with positions (1 or N, S, C) to tokens (N, S, C)."""
        for layer in self.layers:
            x = layer(x, pos)
        return self.norm(x)


class TransformerDecoder(nn.Module):
    """Queries that read the pixels of one feature map; arguments are as in :class:`TransformerEncoder`."""

    def __init__(
        self,
        num_layers: int,
        *,
        embed_dim: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(embed_dim, num_heads, dim_feedforward, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        init_matrices(self)

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor) -> list[Tensor]:
        """Update the queries.

        Args:
            x: (N, Q, C).
            query_pos: (1 or N, Q, C).
            memory: the pixels (N, HW, C).
            pos: their position encoding (1 or N, HW, C).

        Returns:
            The normalised queries (N, Q, C) after each layer.
        """
        outputs = []
        for layer in self.layers:
            x = layer(x, query_pos, memory, pos)
            outputs.append(self.norm(x))
        return outputs


def init_matrices(module: nn.Module) -> None:
    """Xavier's initialisation for all weights, in place; biases and norms stay."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
