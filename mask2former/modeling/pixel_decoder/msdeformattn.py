"""The paper's pixel decoder: multi-scale deformable attention (Section 3.2.2 and Section 4.1)."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...constructors import arguments_for
from ..build import build_pixel_decoder
from ..position_encoding import PositionEmbeddingSine
from .conv_norm import Norm, conv_norm
from .deformable_encoder import MSDeformAttnTransformerEncoder
from .official_deformable import MSDeformAttnTransformerEncoderOnly
from .official_pixel_decoder import OfficialPixelDecoder

__all__ = [
    "MSDeformAttnPixelDecoder",
    # Which is where the official release has them.
    "MSDeformAttnTransformerEncoderOnly",
    "build_pixel_decoder",
]

_NUM_GROUPS = 32  # of every group norm, as in Detectron2's "GN"


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(OfficialPixelDecoder):
    """Backbone features to a per-pixel embedding at stride 4 and a pyramid for the Transformer decoder.

    The coarse features (1/32, 1/16, 1/8) are refined together by deformable attention; the finest result is upsampled
    and added to a lateral connection at 1/4.

    A subclass that defines the official release's ``forward_features`` gets the official encoder.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        transformer_enc_points: int = 4,
        conv_dim: int,
        mask_dim: int,
        norm: Norm = None,
        transformer_in_features: list[str],
        common_stride: int,
        num_feature_levels: int = 3,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            transformer_dropout: dropout of the Transformer encoder.
            transformer_nheads: its attention heads.
            transformer_dim_feedforward: hidden width of its feed-forward networks.
            transformer_enc_layers: its layers.
            transformer_enc_points: sampling points per head and level.
            conv_dim: channels of every intermediate feature.
            mask_dim: channels of the per-pixel embedding.
            norm: normalisation of the lateral and output convolutions, as in Detectron2's ``get_norm``.
            transformer_in_features: backbone features that the encoder refines.
            common_stride: stride of the per-pixel embedding.
            num_feature_levels: maps handed to the Transformer decoder, from the coarsest on.

        Raises:
            ValueError: if features are missing, none has the stride ``common_stride``, there are fewer maps than
                ``num_feature_levels``, or ``conv_dim`` is not a multiple of 32.
        """
        super().__init__(conv_dim=conv_dim, norm=norm, upsample_mode="bilinear")
        shapes = dict(sorted(input_shape.items(), key=lambda item: item[1].stride))
        self.transformer_in_features = [name for name in shapes if name in transformer_in_features]  # fine to coarse
        finest_stride = _check_features(shapes, transformer_in_features, common_stride)
        lateral_features = [name for name, shape in shapes.items() if common_stride <= shape.stride < finest_stride]
        num_maps = len(self.transformer_in_features) + len(lateral_features)
        if num_feature_levels > num_maps:
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_FEATURE_LEVELS is {num_feature_levels}, but the pixel decoder makes {num_maps} "
                f"maps from {list(shapes)}; lower it or add features."
            )
        if conv_dim % _NUM_GROUPS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {conv_dim}, but group norm takes channels in {_NUM_GROUPS} groups; "
                f"choose a multiple of {_NUM_GROUPS}."
            )
        self.num_feature_levels = num_feature_levels

        self.input_proj = nn.ModuleList(
            [_projection(shapes[name].channels, conv_dim) for name in reversed(self.transformer_in_features)]
        )
        encoder: dict[str, Any] = {
            "embed_dim": conv_dim,
            "dim_feedforward": transformer_dim_feedforward,
            "num_levels": len(self.transformer_in_features),
            "num_heads": transformer_nheads,
            "num_points": transformer_enc_points,
            "num_layers": transformer_enc_layers,
            "dropout": transformer_dropout,
        }
        self.has_official_parts = type(self).forward_features is not MSDeformAttnPixelDecoder.forward_features
        if self.has_official_parts:
            self.use_official_parts(shapes, **encoder)
        else:
            self.transformer = MSDeformAttnTransformerEncoder(**encoder)
            self.pe_layer = PositionEmbeddingSine(conv_dim // 2)
        self.mask_features = conv_norm(conv_dim, mask_dim, 1, norm="")

        # Index from the finest, as in the checkpoints' names, and feature; visited from coarse to fine.
        for index, name in list(enumerate(lateral_features, start=1))[::-1]:
            self.add_level(index, name, shapes[name].channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate a configuration and the backbone's output shape to the arguments of ``__init__``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        arguments = {
            "input_shape": {k: v for k, v in input_shape.items() if k in head.IN_FEATURES},
            "transformer_dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "transformer_nheads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "transformer_dim_feedforward": head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_enc_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "common_stride": head.COMMON_STRIDE,
            "num_feature_levels": cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS,
        }
        return arguments_for(cls, MSDeformAttnPixelDecoder, arguments)

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode backbone features.

        Args:
            features: backbone features by name, (N, C_i, H / stride_i, W / stride_i).

        Returns:
            The per-pixel embedding (N, mask_dim, H / 4, W / 4), the coarsest refined map, and the
            ``num_feature_levels`` coarsest maps (N, conv_dim, H_l, W_l), coarse to fine.

        Raises:
            ValueError: if the weights are in half precision, but for bfloat16 under autocast.
        """
        device_type = next(iter(features.values())).device.type
        # float16 overflows here, so half precision is bfloat16 or none; the official release runs in float32.
        use_autocast = (
            torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) is torch.bfloat16
        )
        dtype = next(self.parameters()).dtype
        if dtype == torch.float16 or (dtype == torch.bfloat16 and not use_autocast):
            raise ValueError(
                f"the pixel decoder's weights are {dtype}, but it computes in float32; leave the model in float32 "
                "(model.float()) and run it under torch.autocast, which converts what can be, or, for inference, load "
                'it with optimize="bfloat16".'
            )
        if use_autocast:
            return self._decode(features)
        with torch.autocast(device_type, enabled=False):
            return self._decode({k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in features.items()})

    def _decode(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        names = reversed(self.transformer_in_features)
        projected = [project(features[name]) for project, name in zip(self.input_proj, names, strict=True)]
        maps = self.official_refine(projected) if self.has_official_parts else self._refine(projected)
        maps += self.descend(maps[-1], features)
        return self.mask_features(maps[-1]), maps[0], maps[: self.num_feature_levels]

    def _refine(self, maps: list[Tensor]) -> list[Tensor]:
        positions = [self.pe_layer(x.shape[-2], x.shape[-1], x.device) for x in maps]
        refined: list[Tensor] = self.transformer(maps, positions)
        return refined


def _projection(in_channels: int, conv_dim: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, conv_dim, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(_NUM_GROUPS, conv_dim))


def _check_features(shapes: dict[str, ShapeSpec], transformer_in_features: list[str], common_stride: int) -> int:
    """The finest stride that the encoder refines, after a check that every feature that is asked for is there."""
    missing = sorted(set(transformer_in_features) - set(shapes))
    if missing or not transformer_in_features:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES names {missing or 'nothing'}, but the "
            f"features given by MODEL.SEM_SEG_HEAD.IN_FEATURES are {list(shapes)}; make the two agree."
        )
    finest_stride = min(shapes[name].stride for name in transformer_in_features)
    strides = [shape.stride for shape in shapes.values() if shape.stride <= finest_stride]
    if common_stride not in strides:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {common_stride}, but a per-pixel embedding can be made at the "
            f"strides {strides}; choose one of them, or add a feature of that stride to MODEL.SEM_SEG_HEAD.IN_FEATURES."
        )
    return finest_stride
