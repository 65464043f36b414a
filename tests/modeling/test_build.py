"""What the head and the builders of its two decoders refuse, and what passes through them."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_sem_seg_head
from torch import nn

from mask2former.modeling.build import build_pixel_decoder

INPUT_SHAPE = {
    name: ShapeSpec(channels=8, stride=stride)
    for name, stride in (("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32))
}


@pytest.mark.parametrize("in_features", [["res5"], ["res3", "res4", "res5"], ["res2", "res3", "res4", "res5"]])
def test_features_become_predictions(tiny_cfg: CfgNode, in_features: list[str]) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = in_features
    tiny_cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS = len(in_features)
    head = build_sem_seg_head(tiny_cfg, INPUT_SHAPE).eval()
    features = {name: torch.randn(2, 8, 64 // shape.stride, 96 // shape.stride) for name, shape in INPUT_SHAPE.items()}
    outputs = head(features)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "pred_logits": (2, 10, 4),
        "pred_masks": (2, 10, 16, 24),
    }


def test_features_that_the_backbone_does_not_give(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res6"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res6'\], but the backbone gives \['res2', .*; set the"):
        build_sem_seg_head(tiny_cfg, INPUT_SHAPE)


def test_another_source_of_features_than_this_head_has(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res7"
    with pytest.raises(ValueError, match="TRANSFORMER_IN_FEATURE is 'res7'; expected one of"):
        build_sem_seg_head(tiny_cfg, INPUT_SHAPE)


@SEM_SEG_HEADS_REGISTRY.register()
class NoPixelDecoder(nn.Module):
    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()


def test_what_is_no_pixel_decoder(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "NoPixelDecoder"
    with pytest.raises(
        TypeError, match="'NoPixelDecoder', which is not a pixel decoder: it has no method forward_feat"
    ):
        build_pixel_decoder(tiny_cfg, INPUT_SHAPE)
