"""Subclasses whose constructors take the official release's arguments alone, and those that take a configuration."""

from typing import Any

import pytest
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec

from mask2former import MaskFormer
from mask2former.modeling import MSDeformAttnPixelDecoder, MultiScaleMaskedTransformerDecoder
from mask2former.modeling.pixel_decoder.fpn import TransformerEncoderPixelDecoder


class OwnModel(MaskFormer):
    @configurable
    def __init__(
        self,
        *,
        backbone: Any,
        sem_seg_head: Any,
        criterion: Any,
        num_queries: int,
        object_mask_threshold: float,
        overlap_threshold: float,
        metadata: Any,
        size_divisibility: int,
        sem_seg_postprocess_before_inference: bool,
        pixel_mean: Any,
        pixel_std: Any,
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        test_topk_per_image: int,
        temperature: float,
    ) -> None:
        official = {name: value for name, value in locals().items() if name not in ("self", "temperature", "__class__")}
        super().__init__(**official)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "temperature": 0.5}


class OwnTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})


class OwnPixelDecoder(MSDeformAttnPixelDecoder):
    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        transformer_in_features: list[str],
        common_stride: int,
    ) -> None:
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})


class OwnFPN(TransformerEncoderPixelDecoder):
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
        norm: str,
    ) -> None:
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})


class FromConfiguration(MSDeformAttnPixelDecoder):
    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__(cfg, input_shape)
        self.was_made = True


class Derived(OwnPixelDecoder):
    @configurable
    def __init__(self, extra: int = 0, **official: Any) -> None:
        super().__init__(**official)


SHAPES = {f"res{i}": ShapeSpec(channels=2**i, stride=2**i) for i in range(2, 6)}


def test_the_official_arguments_are_enough(tiny_cfg: CfgNode) -> None:
    assert OwnModel(tiny_cfg).temperature == 0.5
    assert (
        OwnTransformerDecoder(tiny_cfg, 64, True).num_layers
        == MultiScaleMaskedTransformerDecoder(tiny_cfg, 64, True).num_layers
    )
    expected = MSDeformAttnPixelDecoder(tiny_cfg, SHAPES).state_dict().keys()
    for cls in (OwnPixelDecoder, FromConfiguration, Derived):
        assert cls(tiny_cfg, SHAPES).state_dict().keys() == expected
    assert OwnFPN(tiny_cfg, SHAPES).num_feature_levels == 3


def test_what_a_configuration_asks_for_is_not_left_out(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE = 64
    with pytest.raises(TypeError, match="unexpected keyword argument 'tile_size'"):
        OwnModel(tiny_cfg)
    tiny_cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'transformer_enc_points'"):
        OwnPixelDecoder(tiny_cfg, SHAPES)
    decoder = FromConfiguration(tiny_cfg, SHAPES)
    assert decoder.transformer.encoder.layers[0].self_attn.num_points == 2
