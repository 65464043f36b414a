"""A Transformer encoder on the coarsest feature (DETR, Carion et al., ECCV 2020, Section 3.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..position_encoding import PositionEmbeddingSine

__all__ = ["CoarseEncoder", "CoarseEncoderLayer"]


class CoarseEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual and LayerNorm after it."""

    def __init__(self, embed_dim: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Map tokens (N, S, C) with positions (1, S, C) to (N, S, C)."""
        attended, _ = self.self_attn(x + pos, x + pos, x, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class CoarseEncoder(nn.Module):
    """Every pixel of a map attends to all others.

    MaskFormer (NeurIPS 2021) puts six layers of it before its FPN for COCO.

    Args:
        embed_dim: channels C.
        num_layers: 0 returns the map as it is.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability, after attention and in the feed-forward networks.
    """

    def __init__(
        self, embed_dim: int, num_layers: int, num_heads: int = 8, dim_feedforward: int = 2048, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CoarseEncoderLayer(embed_dim, num_heads, dim_feedforward, dropout) for _ in range(num_layers)
        )
        self.pe_layer = PositionEmbeddingSine(embed_dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        if not self.layers:
            return x
        size = x.shape[-2:]
        pos = self.pe_layer(*size, x.device).flatten(2).transpose(1, 2)  # (1, HW, C)
        tokens = x.flatten(2).transpose(1, 2)  # (N, HW, C)
        for layer in self.layers:
            tokens = layer(tokens, pos)
        return tokens.transpose(1, 2).unflatten(2, size)
