"""The three sub-layers of a decoder layer (Figure 2, right) and the MLP of the mask head."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..build import CROSS_ATTENTION_REGISTRY
from .scales import Scale

__all__ = [
    "MLP",
    "CrossAttentionLayer",
    "FFNLayer",
    "MaskedAttentionLayer",
    "MultiheadAttention",
    "ResidualLayer",
    "SelfAttentionLayer",
]


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of ``torch.nn.MultiheadAttention``, batch first, one mask for all heads.

    ``nn.MultiheadAttention`` wants a mask for each head, which is ``num_heads`` copies of the same one here.

    Raises:
        ValueError: if ``embed_dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"attention splits its channels over the heads, but MODEL.MASK_FORMER.HIDDEN_DIM {embed_dim} does not "
                f"divide by MODEL.MASK_FORMER.NHEADS {num_heads}; choose a multiple."
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None) -> Tensor:
        """Attend from queries to keys.

        Args:
            query: (N, Q, C).
            key: (N, S, C).
            value: (N, S, C).
            attend: (N, Q, S) bool, True where a query may look; every query needs at least one True. None allows all.
                Or (N, M, Q, S) floating point, added to the attention logits of each head.

        Returns:
            (N, Q, C).
        """
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, M, Q or S, D)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        # One mask is broadcast over the heads, (N, 1, Q, S).
        mask = attend[:, None] if attend is not None and attend.dim() == 3 else attend
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class ResidualLayer(nn.Module):
    """``x + f(x)`` with LayerNorm after the sum, or before ``f`` if ``pre_norm``."""

    def __init__(self, embed_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def _before(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre_norm else x

    def _after(self, x: Tensor, update: Tensor) -> Tensor:
        x = x + self.dropout(update)
        return x if self.pre_norm else self.norm(x)

    def _init_matrices(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


class SelfAttentionLayer(ResidualLayer):
    """Queries attend to one another."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(embed_dim, dropout, pre_norm)
        self.self_attn = MultiheadAttention(embed_dim, num_heads, dropout)
        self._init_matrices()

    def forward(self, x: Tensor, query_pos: Tensor) -> Tensor:
        """Map queries (N, Q, C) with positions (1 or N, Q, C) to (N, Q, C)."""
        y = self._before(x)
        return self._after(x, self.self_attn(y + query_pos, y + query_pos, y))


@CROSS_ATTENTION_REGISTRY.register()
class CrossAttentionLayer(ResidualLayer):
    """Queries attend to pixels: DETR's cross-attention where ``attend`` is None, as in Table 4c's first row."""

    # Whether the decoder should find out where a query's mask is, and pass it as ``attend``.
    reads_masks = False

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(embed_dim, dropout, pre_norm)
        self.multihead_attn = MultiheadAttention(embed_dim, num_heads, dropout)
        self._init_matrices()

    def forward(self, x: Tensor, query_pos: Tensor, scale: Scale, attend: Tensor | None) -> Tensor:
        """Map queries (N, Q, C) to (N, Q, C), reading pixels.

        Args:
            x: (N, Q, C).
            query_pos: (1 or N, Q, C).
            scale: the pixels.
            attend: (N, Q, S) bool or (N, M, Q, S) as in :class:`MultiheadAttention`.
        """
        update = self.multihead_attn(self._before(x) + query_pos, scale.memory + scale.pos, scale.memory, attend)
        return self._after(x, update)


@CROSS_ATTENTION_REGISTRY.register()
class MaskedAttentionLayer(CrossAttentionLayer):
    """The paper's masked attention (equation 2): each query attends to the pixels of the mask that it predicts."""

    reads_masks = True


class FFNLayer(ResidualLayer):
    """The feed-forward network, with ReLU."""

    def __init__(self, embed_dim: int, dim_feedforward: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(embed_dim, dropout, pre_norm)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim)
        self._init_matrices()

    def forward(self, x: Tensor) -> Tensor:
        """Map queries (N, Q, C) to (N, Q, C)."""
        hidden = self.dropout(F.relu(self.linear1(self._before(x))))
        return self._after(x, self.linear2(hidden))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
