"""Networks in float16, of every kind of pixel decoder and Transformer decoder."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former.export import ExportGraph
from mask2former.modeling.optimize import prepare_for_training
from tests.modeling.conftest import make_tiny_cfg


def _make_v1(cfg: CfgNode, pixel_decoder: str, read: str) -> None:
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = pixel_decoder
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = read


def _make_fpn(cfg: CfgNode) -> None:
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "FPNPixelDecoder"


KINDS = {
    "Mask2Former": lambda cfg: None,
    "FPN": _make_fpn,
    "MaskFormer, semantic": lambda cfg: _make_v1(cfg, "BasePixelDecoder", "res5"),
    "MaskFormer, instances": lambda cfg: _make_v1(cfg, "TransformerEncoderPixelDecoder", "transformer_encoder"),
    "MaskFormer, reading the embedding": lambda cfg: _make_v1(cfg, "BasePixelDecoder", "pixel_embedding"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_float32(kind: str) -> None:
    cfg = make_tiny_cfg()
    KINDS[kind](cfg)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    images = torch.randint(256, (2, 3, 64, 96))
    with torch.no_grad():
        exact, half = (ExportGraph(model, half=half)(images) for half in (False, True))
    for found, expected in zip(half, exact, strict=True):
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max() / expected.abs().max()) < 0.05


def test_a_model_that_was_trained() -> None:
    model, images = build_model(make_tiny_cfg()).eval(), torch.randint(256, (2, 3, 64, 96))
    with torch.no_grad():
        expected = ExportGraph(model, half=True)(images)
        found = ExportGraph(prepare_for_training(model), half=True)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
