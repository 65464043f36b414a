"""The three sub-layers of a decoder layer (Figure 2, right), the MLP of the mask head, and the input's projection."""

from itertools import pairwise

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ...ops.linear import linear_relu
from ..attention import MultiheadAttention
from ..build import CROSS_ATTENTION_REGISTRY
from ..transformer import init_matrices
from .scales import Scale

__all__ = [
    "MLP",
    "CrossAttentionLayer",
    "FFNLayer",
    "MaskedAttentionLayer",
    "ResidualLayer",
    "SelfAttentionLayer",
    "input_projection",
]


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


class SelfAttentionLayer(ResidualLayer):
    """Queries attend to one another."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(embed_dim, dropout, pre_norm)
        self.self_attn = MultiheadAttention(embed_dim, num_heads, dropout)
        init_matrices(self)

    def forward(self, x: Tensor, query_pos: Tensor) -> Tensor:
        """Map queries (N, Q, C) with positions (1 or N, Q, C) to (N, Q, C)."""
        y = self._before(x)
        placed = y + query_pos
        return self._after(x, self.self_attn(placed, placed, y))


@CROSS_ATTENTION_REGISTRY.register()
class CrossAttentionLayer(ResidualLayer):
    """Queries attend to pixels: DETR's cross-attention where ``attend`` is None, as in Table 4c's first row."""

    # Whether the decoder should find out where a query's mask is, and pass it as ``attend``.
    reads_masks = False

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(embed_dim, dropout, pre_norm)
        self.multihead_attn = MultiheadAttention(embed_dim, num_heads, dropout)
        init_matrices(self)

    def forward(self, x: Tensor, query_pos: Tensor, scale: Scale, attend: Tensor | None) -> Tensor:
        """Map queries (N, Q, C) to (N, Q, C), reading pixels.

        Args:
            x: (N, Q, C).
            query_pos: (1 or N, Q, C).
            scale: the pixels.
            attend: (N, Q, S) bool or (N, M, Q, S) as in :class:`~mask2former.modeling.attention.MultiheadAttention`.
        """
        update = self.multihead_attn(self._before(x) + query_pos, scale.keys, scale.memory, attend)
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
        init_matrices(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map queries (N, Q, C) to (N, Q, C)."""
        hidden = self.dropout(linear_relu(self.linear1, self._before(x)))
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
            x = linear_relu(layer, x)
        return self.layers[-1](x)


def input_projection(in_channels: int, hidden_dim: int, enforce: bool) -> nn.Module:
    """Make a 1x1 convolution to ``hidden_dim`` channels; nothing where there are as many, unless enforced."""
    if in_channels == hidden_dim and not enforce:
        return nn.Sequential()  # identity without parameters
    conv = Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(conv)
    return conv
