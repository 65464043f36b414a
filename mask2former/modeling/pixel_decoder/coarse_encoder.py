"""A Transformer encoder on the coarsest feature (DETR, Carion et al., ECCV 2020, Section 3.2)."""

from torch import Tensor

from ..position_encoding import PositionEmbeddingSine
from ..transformer import TransformerEncoder

__all__ = ["CoarseEncoder"]


class CoarseEncoder(TransformerEncoder):
    """Every pixel of a map attends to all others.

    MaskFormer (NeurIPS 2021) puts six layers of it before its FPN for COCO.

    Args:
        embed_dim: channels C.
        num_layers: 0 leaves the map as it is.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability, in attention, after each sub-layer and in the feed-forward networks.
        pre_norm: LayerNorm before each sub-layer, and one after the last layer.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__(
            num_layers,
            embed_dim=embed_dim,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        self.pe_layer = PositionEmbeddingSine(embed_dim // 2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a map, not tokens
        """Map (N, C, H, W) to (N, C, H, W)."""
        height, width = x.shape[-2:]
        pos = self.pe_layer(height, width, x.device).flatten(2).transpose(1, 2)  # (1, HW, C)
        tokens = super().forward(x.flatten(2).transpose(1, 2), pos)  # (N, HW, C)
        return tokens.transpose(1, 2).unflatten(2, (height, width))
