"""What the official release's pixel decoder offers to its subclasses: its encoder, and attributes to read."""

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..official_layers import PositionEmbeddingSine
from .official_deformable import MSDeformAttnTransformerEncoderOnly
from .top_down import TopDownPath

__all__ = ["OfficialPixelDecoder"]


class OfficialPixelDecoder(TopDownPath):
    """Base of the pixel decoder for subclasses that define ``forward_features``, as the official release has it.

    Such a decoder has the encoder of :mod:`.official_deformable`, with the same names and parameters, and a position
    encoding that is called with maps. Others do not use this class.
    """

    transformer: nn.Module
    pe_layer: nn.Module
    num_feature_levels: int
    transformer_in_features: list[str]

    def use_official_parts(
        self,
        shapes: Mapping[str, ShapeSpec],
        *,
        embed_dim: int,
        dim_feedforward: int,
        num_levels: int,
        num_heads: int,
        num_points: int,
        num_layers: int,
        dropout: float,
    ) -> None:
        """Make the encoder and the position encoding.

        Args:
            shapes: channels and stride of each backbone feature, fine to coarse.
            embed_dim, dim_feedforward, num_levels, num_heads, num_points, num_layers, dropout: of the encoder.
        """
        self.in_features = list(shapes)
        self.feature_strides = [shape.stride for shape in shapes.values()]
        self.feature_channels = [shape.channels for shape in shapes.values()]
        self.transformer = MSDeformAttnTransformerEncoderOnly(
            d_model=embed_dim,
            nhead=num_heads,
            num_encoder_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            num_feature_levels=num_levels,
            enc_n_points=num_points,
        )
        self.pe_layer = PositionEmbeddingSine(embed_dim // 2, normalize=True)

    @property
    def transformer_num_feature_levels(self) -> int:
        """Maps that the encoder refines."""
        return len(self.transformer_in_features)

    @property
    def maskformer_num_feature_levels(self) -> int:
        """Maps handed to the Transformer decoder."""
        return self.num_feature_levels

    @property
    def num_fpn_levels(self) -> int:
        """Backbone features that are finer than those."""
        return len(self.fpn_levels)

    @property
    def lateral_convs(self) -> list[nn.Module]:
        """Of each of these, coarse to fine."""
        return [self.get_submodule(f"adapter_{index}") for index, _ in self.fpn_levels]

    @property
    def output_convs(self) -> list[nn.Module]:
        """Of each of these, coarse to fine."""
        return [self.get_submodule(f"layer_{index}") for index, _ in self.fpn_levels]

    def official_refine(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Refine maps (N, C, H_l, W_l) by the official encoder."""
        tokens, _, starts = self.transformer(maps, [self.pe_layer(x) for x in maps])
        levels = tokens.tensor_split(starts[1:].tolist(), dim=1)
        return [level.transpose(1, 2).unflatten(2, x.shape[2:]) for level, x in zip(levels, maps, strict=True)]
