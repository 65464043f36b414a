"""Mask pooling instead of attention (Zhang et al., K-Net: Towards Unified Image Segmentation, NeurIPS 2021)."""

import torch
from torch import Tensor, nn

from ..build import CROSS_ATTENTION_REGISTRY
from ..transformer import init_matrices
from .layers import ResidualLayer
from .scales import Scale

__all__ = ["MaskPoolingLayer"]


@CROSS_ATTENTION_REGISTRY.register()
class MaskPoolingLayer(ResidualLayer):
    """Features averaged inside a query's mask update the query, as K-Net's update heads do (equations 4 to 7 there).

    With pooled features f and query x: ``g = phi1(f) * phi2(x)`` opens two gates, ``sigmoid(psi1(g))`` for the
    features and ``sigmoid(psi2(g))`` for the query, and the new query is ``gate_f * psi3(f) + gate_x * psi4(x)``. phi
    are linear, psi linear with LayerNorm. The gates decide what stays of the query, so there is no residual besides.
    K-Net adds features up; the mean (as Mask2Former's Section 4.4 has it) keeps their size the same at every
    resolution. No pixel is projected, which is why this costs less than attention does (Table 4c: 217G of 226G).
    """

    reads_masks = True

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        """Arguments are those of cross-attention; there are no heads, so ``num_heads`` is of no effect."""
        super().__init__(embed_dim, dropout, pre_norm)
        self.feature_to_gate = nn.Linear(embed_dim, embed_dim)
        self.query_to_gate = nn.Linear(embed_dim, embed_dim)
        self.feature_gate = _linear_norm(embed_dim)
        self.query_gate = _linear_norm(embed_dim)
        self.feature_update = _linear_norm(embed_dim)
        self.query_update = _linear_norm(embed_dim)
        init_matrices(self)

    def forward(self, x: Tensor, query_pos: Tensor, scale: Scale, attend: Tensor | None) -> Tensor:
        """Map queries (N, Q, C) to (N, Q, C).

        Args:
            x: (N, Q, C).
            query_pos: (1 or N, Q, C).
            scale: the pixels.
            attend: (N, Q, S) bool, the masks; none is empty. None averages all pixels.
        """
        pooled = self.dropout(pool(scale.memory, attend))  # (N, Q or 1, C)
        query = self._before(x) + query_pos
        gate = self.feature_to_gate(pooled) * self.query_to_gate(query)
        from_features = self.feature_gate(gate).sigmoid() * self.feature_update(pooled)
        updated = from_features + self.query_gate(gate).sigmoid() * self.query_update(query)
        return updated if self.pre_norm else self.norm(updated)


def pool(memory: Tensor, masks: Tensor | None) -> Tensor:
    """Means of features (N, S, C) inside masks (N, Q, S), (N, Q, C); over everything without masks, (N, 1, C)."""
    if masks is None:
        return memory.mean(dim=1, keepdim=True)
    # Weights, not a sum that is divided: sums over a large mask exceed float16. Of the largest, the pixels do, too.
    weights = masks.to(torch.promote_types(memory.dtype, torch.float32)) / masks.sum(dim=-1, keepdim=True)
    return torch.bmm(weights.to(memory.dtype), memory)


def _linear_norm(embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim))
