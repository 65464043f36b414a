"""MaskFormer's pixel decoders: a feature pyramid, alone or with a Transformer encoder on its coarsest feature."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...constructors import arguments_for
from .coarse_encoder import CoarseEncoder
from .conv_norm import Norm, conv_norm
from .top_down import TopDownPath

__all__ = ["BasePixelDecoder", "TransformerEncoderPixelDecoder"]


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(TopDownPath):
    """Backbone features to a per-pixel embedding, by a light feature pyramid (MaskFormer, Section 4.1)."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: Norm = None,
        num_feature_levels: int = 3,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            conv_dim: channels of every intermediate feature.
            mask_dim: channels of the per-pixel embedding.
            norm: normalisation of the convolutions, as in Detectron2's ``get_norm``.
            num_feature_levels: maps handed to a Transformer decoder that reads several, from the coarsest on.
        """
        super().__init__(conv_dim=conv_dim, norm=norm, upsample_mode="nearest")
        names = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.num_feature_levels = num_feature_levels
        self.coarsest_feature = names[-1]
        self.coarsest_layer = f"layer_{len(names)}"
        self.add_module(self.coarsest_layer, self.output_conv(input_shape[names[-1]].channels))
        for index in range(len(names) - 1, 0, -1):
            self.add_level(index, names[index - 1], input_shape[names[index - 1]].channels)
        self.mask_features = conv_norm(conv_dim, mask_dim, 3, norm="")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate a configuration and the backbone's output shape to the arguments of ``__init__``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        arguments = {
            "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "num_feature_levels": cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS,
        }
        return arguments_for(cls, BasePixelDecoder, arguments)

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Decode backbone features.

        Args:
            features: backbone features by name, (N, C_i, H / stride_i, W / stride_i).

        Returns:
            The per-pixel embedding (N, mask_dim, H_1, W_1) in the size of the finest feature, the coarsest feature as
            an encoder refined it or None, and the ``num_feature_levels`` coarsest maps (N, conv_dim, H_l, W_l), coarse
            to fine.
        """
        coarsest = features[self.coarsest_feature]
        encoded = self.encode(coarsest)
        first = self.get_submodule(self.coarsest_layer)(coarsest if encoded is None else encoded)
        maps = [first, *self.descend(first, features)]
        return self.mask_features(maps[-1]), encoded, maps[: self.num_feature_levels]

    def encode(self, coarsest: Tensor) -> Tensor | None:
        """Refine the coarsest feature (N, C_i, H, W) to (N, conv_dim, H, W), where there is something that does."""
        return None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """:class:`BasePixelDecoder` with DETR's encoder on the coarsest feature: MaskFormer's for COCO, with ResNets."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        transformer_pre_norm: bool,
        conv_dim: int,
        mask_dim: int,
        norm: Norm = None,
        num_feature_levels: int = 3,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            transformer_dropout: dropout of the Transformer encoder.
            transformer_nheads: its attention heads.
            transformer_dim_feedforward: hidden width of its feed-forward networks.
            transformer_enc_layers: its layers; 6 in the paper.
            transformer_pre_norm: LayerNorm before each of its sub-layers, not after.
            conv_dim: channels of every intermediate feature, the encoder's included.
            mask_dim: channels of the per-pixel embedding.
            norm: normalisation of the convolutions, as in Detectron2's ``get_norm``.
            num_feature_levels: maps handed to a Transformer decoder that reads several, from the coarsest on.
        """
        super().__init__(
            input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm, num_feature_levels=num_feature_levels
        )
        self.input_proj = conv_norm(input_shape[self.coarsest_feature].channels, conv_dim, 1, norm="")
        encoder = CoarseEncoder(
            conv_dim,
            num_layers=transformer_enc_layers,
            num_heads=transformer_nheads,
            dim_feedforward=transformer_dim_feedforward,
            dropout=transformer_dropout,
            pre_norm=transformer_pre_norm,
        )
        self.transformer = nn.ModuleDict({"encoder": encoder})  # the checkpoints' name
        # Replaces the base class's, which reads the backbone's feature: this one reads the encoder's map.
        self.add_module(self.coarsest_layer, self.output_conv(conv_dim))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate a configuration and the backbone's output shape to the arguments of ``__init__``."""
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            **super().from_config(cfg, input_shape),
            "transformer_dropout": mask_former.DROPOUT,
            "transformer_nheads": mask_former.NHEADS,
            "transformer_dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "transformer_enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "transformer_pre_norm": mask_former.PRE_NORM,
        }

    def encode(self, coarsest: Tensor) -> Tensor:
        """Refine the coarsest feature (N, C_i, H, W) to (N, conv_dim, H, W)."""
        encoded: Tensor = self.transformer["encoder"](self.input_proj(coarsest))
        return encoded
