import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize.mask_features import fold_mask_features


def build(cfg: CfgNode) -> MaskFormer:
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.sem_seg_head.pixel_decoder.mask_features.bias.normal_()  # zero at first
    return model


@torch.no_grad()
@pytest.mark.parametrize("attention", ["MaskedAttentionLayer", "SMCALayer", "MaskPoolingLayer"])
def test_same_predictions_with_one_convolution_less(tiny_cfg: CfgNode, attention: str) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 24  # not the pyramid's number of channels
    tiny_cfg.MODEL.MASK_FORMER.CROSS_ATTENTION_NAME = attention
    model = build(tiny_cfg)
    images = torch.randn(2, 3, 64, 96)
    expected = model.run_network(images)
    assert fold_mask_features(model.sem_seg_head)
    assert isinstance(model.sem_seg_head.pixel_decoder.mask_features, nn.Identity)
    actual = model.run_network(images)
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    assert not fold_mask_features(model.sem_seg_head)  # nothing is left to fold


@pytest.mark.parametrize(
    ("decoder", "feature"),
    [("FPNPixelDecoder", "multi_scale_pixel_decoder"), ("MSDeformAttnPixelDecoder", "pixel_embedding")],
)
def test_where_it_cannot_be(tiny_cfg: CfgNode, decoder: str, feature: str) -> None:
    """The convolution is 3x3, or the Transformer decoder attends to what it gives."""
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = decoder
    if feature == "pixel_embedding":
        tiny_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = feature
        tiny_cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    head = build(tiny_cfg).sem_seg_head
    assert not fold_mask_features(head)
    assert isinstance(head.pixel_decoder.mask_features, nn.Conv2d)


@torch.no_grad()
@pytest.mark.parametrize("part", ["pixel_decoder", "predictor"])
def test_parts_of_ones_own_keep_what_they_call_by_the_same_names(tiny_cfg: CfgNode, part: str) -> None:
    """Another pixel decoder may change what the convolution gives, another Transformer decoder use its own network."""
    model = build(tiny_cfg)
    own = getattr(model.sem_seg_head, part)
    own.__class__ = type("Own", (type(own),), {"__module__": "somebodys.project"})
    assert not fold_mask_features(model.sem_seg_head)
    assert isinstance(model.sem_seg_head.pixel_decoder.mask_features, nn.Conv2d)


@torch.no_grad()
def test_another_last_layer_stays(tiny_cfg: CfgNode) -> None:
    """As one in 8 bits, whose weights are no matrix."""
    model = build(tiny_cfg)
    layers = model.sem_seg_head.predictor.mask_embed.layers
    layers[-1] = nn.Sequential(layers[-1])
    assert not fold_mask_features(model.sem_seg_head)
    assert isinstance(model.sem_seg_head.pixel_decoder.mask_features, nn.Conv2d)
