"""Multi-head attention, as all Transformers here use it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.linear import linear
from ..ops.masked_attention import has_fast_attention, masked_attention

__all__ = ["MultiheadAttention"]


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
                f"attention splits its channels over the heads, but {embed_dim} channels (MODEL.MASK_FORMER.HIDDEN_DIM "
                f"or MODEL.SEM_SEG_HEAD.CONVS_DIM in a pixel decoder) do not divide by {num_heads} heads "
                "(MODEL.MASK_FORMER.NHEADS); choose a multiple."
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
        q, k, v = self._project(query, key, value)
        dropout = self.dropout if self.training else 0.0
        if dropout == 0 and has_fast_attention(q, k, v, attend, self.num_heads):
            return self.out_proj(masked_attention(q, k, v, attend, self.num_heads))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, M, Q or S, D)
        # One mask is broadcast over the heads, (N, 1, Q, S).
        mask = attend[:, None] if attend is not None and attend.dim() == 3 else attend
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Project queries, keys and values; where queries and keys are the same, both by one product."""
        channels = query.shape[-1]
        together = query is key
        sizes = [2 * channels, channels] if together else [channels] * 3
        inputs = (query, value) if together else (query, key, value)
        projected = tuple(map(linear, inputs, self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes)))
        return (*projected[0].chunk(2, dim=-1), projected[1]) if together else projected
