"""Which features the head's two decoders get."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from torch import Tensor, nn

from mask2former.modeling import MaskFormerHead

SHAPES = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in (2, 3, 4, 5)}


class PixelDecoder(nn.Module):
    """Gives what it is told to."""

    def __init__(self, *decoded: Any) -> None:
        super().__init__()
        self.decoded = decoded

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Any, ...]:
        return self.decoded


class Predictor(nn.Module):
    """Returns what it gets."""

    def forward(self, attended: Any, mask_features: Tensor) -> dict[str, Any]:
        return {"attended": attended, "mask_features": mask_features}


def features() -> dict[str, Tensor]:
    return {name: torch.randn(1, spec.channels, 64 // spec.stride, 64 // spec.stride) for name, spec in SHAPES.items()}


@pytest.mark.parametrize("name", ["multi_scale_pixel_decoder", "transformer_encoder", "pixel_embedding", "res3"])
def test_the_transformer_decoder_gets_the_feature_of_that_name(name: str) -> None:
    embedding, encoded, pyramid = torch.zeros(1), torch.zeros(2), [torch.zeros(3)]
    backbone = {"res3": torch.zeros(4), "res5": torch.zeros(5)}
    head = MaskFormerHead(
        pixel_decoder=PixelDecoder(embedding, encoded, pyramid),
        transformer_predictor=Predictor(),
        num_classes=1,
        transformer_in_feature=name,
    )
    output = head(backbone)
    assert output["mask_features"] is embedding
    expected = {
        "multi_scale_pixel_decoder": pyramid,
        "transformer_encoder": encoded,
        "pixel_embedding": embedding,
        "res3": backbone["res3"],
    }
    assert output["attended"] is expected[name]


@pytest.mark.parametrize(
    ("pixel_decoder", "name", "channels"),
    [
        ("BasePixelDecoder", "res5", 20),
        ("BasePixelDecoder", "res2", 8),
        ("BasePixelDecoder", "pixel_embedding", 48),
        ("TransformerEncoderPixelDecoder", "transformer_encoder", 64),
        ("MSDeformAttnPixelDecoder", "transformer_encoder", 64),
    ],
)
def test_the_decoder_is_built_for_the_feature(
    tiny_v1_cfg: CfgNode, pixel_decoder: str, name: str, channels: int
) -> None:
    tiny_v1_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = pixel_decoder
    tiny_v1_cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 48
    tiny_v1_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = name
    head = build_sem_seg_head(tiny_v1_cfg, SHAPES).eval()
    assert head.predictor.input_proj.weight.shape[1] == channels
    output = head(features())
    assert output["pred_logits"].shape == (1, 10, 4)
    assert output["pred_masks"].shape == (1, 10, 16, 16)


def test_a_backbone_feature_need_not_be_among_the_pixel_decoders(tiny_v1_cfg: CfgNode) -> None:
    tiny_v1_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3"]
    output = build_sem_seg_head(tiny_v1_cfg, SHAPES).eval()(features())
    assert output["pred_masks"].shape == (1, 10, 16, 16)


def test_masked_attention_reads_the_pyramid_of_an_fpn_too(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "BasePixelDecoder"
    output = build_sem_seg_head(tiny_cfg, SHAPES).eval()(features())
    assert output["pred_masks"].shape == (1, 10, 16, 16)
    tiny_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res4", "res5"]
    head = build_sem_seg_head(tiny_cfg, SHAPES)
    with pytest.raises(ValueError, match=r"visits 3 scales .*, but the pixel decoder gave 2"):
        head(features())


def test_a_feature_that_does_not_exist(tiny_v1_cfg: CfgNode) -> None:
    tiny_v1_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res6"
    with pytest.raises(ValueError, match=r"TRANSFORMER_IN_FEATURE is 'res6'; .*'pixel_embedding'\] .* 'res5'\]"):
        build_sem_seg_head(tiny_v1_cfg, SHAPES)


def test_a_pixel_decoder_without_an_encoder(tiny_v1_cfg: CfgNode) -> None:
    tiny_v1_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "transformer_encoder"
    head = build_sem_seg_head(tiny_v1_cfg, SHAPES)
    with pytest.raises(ValueError, match="pixel decoder has no Transformer encoder"):
        head(features())


def test_a_head_in_the_place_of_a_pixel_decoder(tiny_v1_cfg: CfgNode) -> None:
    tiny_v1_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "SemSegFPNHead"
    with pytest.raises(TypeError, match="'SemSegFPNHead', which is not a pixel decoder"):
        build_sem_seg_head(tiny_v1_cfg, SHAPES)


def test_a_subclass_with_the_official_arguments() -> None:
    class Own(MaskFormerHead):
        def __init__(self, input_shape: dict[str, ShapeSpec], **kwargs: Any) -> None:
            super().__init__(input_shape, loss_weight=2.0, ignore_value=7, **kwargs)

        def layers(self, features: dict[str, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
            return {"mask": mask, **super().layers(features)}

    decoder = PixelDecoder(torch.zeros(1), None, [])
    head = Own(SHAPES, num_classes=1, pixel_decoder=decoder, transformer_predictor=Predictor())
    assert head.in_features == ["res2", "res3", "res4", "res5"]
    assert (head.common_stride, head.loss_weight, head.ignore_value) == (4, 2.0, 7)
    mask = torch.ones(1)
    assert head(features(), mask)["mask"] is mask
