"""MaskFormer's pixel decoders against a naive feature pyramid."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.build import build_pixel_decoder
from mask2former.modeling.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.modeling.position_encoding import PositionEmbeddingSine
from mask2former.modeling.transformer import TransformerEncoder

SHAPES = {
    "res2": ShapeSpec(channels=6, stride=4),
    "res3": ShapeSpec(channels=8, stride=8),
    "res4": ShapeSpec(channels=10, stride=16),
    "res5": ShapeSpec(channels=12, stride=32),
}
# Sizes of an image of 45 x 70, whose halves are rounded up.
SIZES = {"res2": (12, 18), "res3": (6, 9), "res4": (3, 5), "res5": (2, 3)}


def backbone_features(names: list[str] | None = None) -> dict[str, Tensor]:
    return {name: torch.randn(2, SHAPES[name].channels, *SIZES[name]) for name in names or SHAPES}


def base_decoder(**changes: Any) -> BasePixelDecoder:
    arguments: dict[str, Any] = {"conv_dim": 32, "mask_dim": 16, "norm": "GN"} | changes
    return randomised(BasePixelDecoder(arguments.pop("input_shape", SHAPES), **arguments))


def encoder_decoder(**changes: Any) -> TransformerEncoderPixelDecoder:
    arguments: dict[str, Any] = {
        "conv_dim": 32,
        "mask_dim": 16,
        "norm": "GN",
        "transformer_dropout": 0.0,
        "transformer_nheads": 4,
        "transformer_dim_feedforward": 24,
        "transformer_enc_layers": 2,
        "transformer_pre_norm": False,
    }
    return randomised(TransformerEncoderPixelDecoder(SHAPES, **(arguments | changes)))


def randomised(module: Any) -> Any:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    rows = [row * x.shape[-2] // size[0] for row in range(size[0])]
    columns = [column * x.shape[-1] // size[1] for column in range(size[1])]
    return x[:, :, rows][:, :, :, columns]


def conv_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight = state[f"{name}.weight"]
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    n, c, h, w = y.shape
    groups = y.reshape(n, 32, -1)
    groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    y = groups.reshape(n, c, h, w)
    return y * state[f"{name}.norm.weight"].view(-1, 1, 1) + state[f"{name}.norm.bias"].view(-1, 1, 1)


def naive_pyramid(coarsest: Tensor, features: dict[str, Tensor], state: dict[str, Tensor]) -> list[Tensor]:
    """Coarse to fine, by the equations: P5 = f(C5), P_i = f(g(C_i) + up(P_{i+1}))."""
    maps = [conv_norm(coarsest, state, "layer_4").relu()]
    for index in (3, 2, 1):
        lateral = conv_norm(features[f"res{index + 1}"], state, f"adapter_{index}")
        maps.append(conv_norm(lateral + nearest(maps[-1], lateral.shape[-2:]), state, f"layer_{index}").relu())
    return maps


def embedding(finest: Tensor, state: dict[str, Tensor]) -> Tensor:
    return F.conv2d(finest, state["mask_features.weight"], state["mask_features.bias"], padding=1)


def test_base_pixel_decoder_equals_a_naive_pyramid() -> None:
    decoder, features = base_decoder(), backbone_features()
    mask_features, encoded, pyramid = decoder.forward_features(features)
    state = decoder.state_dict()
    maps = naive_pyramid(features["res5"], features, state)
    torch.testing.assert_close(mask_features, embedding(maps[-1], state))
    assert encoded is None
    assert len(pyramid) == 3
    for actual, expected in zip(pyramid, maps[:3], strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_encoder_refines_the_coarsest_feature(pre_norm: bool) -> None:
    decoder, features = encoder_decoder(transformer_pre_norm=pre_norm), backbone_features()
    mask_features, encoded, pyramid = decoder.forward_features(features)

    projected = F.conv2d(features["res5"], decoder.input_proj.weight, decoder.input_proj.bias)
    position = PositionEmbeddingSine(16)(2, 3)
    pixels = [(row, column) for row in range(2) for column in range(3)]
    tokens = torch.stack([projected[:, :, row, column] for row, column in pixels], dim=1)
    pos = torch.stack([position[:, :, row, column] for row, column in pixels], dim=1)
    tokens = TransformerEncoder.forward(decoder.transformer["encoder"], tokens, pos)
    assert encoded.shape == (2, 32, 2, 3)
    for index, (row, column) in enumerate(pixels):
        torch.testing.assert_close(encoded[:, :, row, column], tokens[:, index])

    state = decoder.state_dict()
    maps = naive_pyramid(encoded, features, state)
    torch.testing.assert_close(mask_features, embedding(maps[-1], state))
    torch.testing.assert_close(pyramid[0], maps[0])


def test_the_order_of_features_is_that_of_their_strides() -> None:
    shuffled = {name: SHAPES[name] for name in ("res4", "res2", "res5", "res3")}
    features = backbone_features()
    decoders = [base_decoder(), base_decoder(input_shape=shuffled)]
    decoders[1].load_state_dict(decoders[0].state_dict())
    results = [decoder.forward_features(features)[0] for decoder in decoders]
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("names", "levels", "given"), [(["res4", "res5"], 3, 2), (list(SHAPES), 4, 4), (["res5"], 1, 1)]
)
def test_any_number_of_features(names: list[str], levels: int, given: int) -> None:
    decoder = base_decoder(input_shape={name: SHAPES[name] for name in names}, num_feature_levels=levels)
    mask_features, _, pyramid = decoder.forward_features(backbone_features(names))
    assert mask_features.shape == (2, 16, *SIZES[names[0]])
    assert [tuple(x.shape[-2:]) for x in pyramid] == [SIZES[name] for name in names[::-1]][:given]


def test_a_bias_stands_in_for_the_norm() -> None:
    names = base_decoder(norm="").state_dict().keys()
    assert "adapter_1.bias" in names
    assert "layer_4.bias" in names
    assert not any("norm" in name for name in names)


def test_configuration_keys(tiny_v1_cfg: CfgNode) -> None:
    head, mask_former = tiny_v1_cfg.MODEL.SEM_SEG_HEAD, tiny_v1_cfg.MODEL.MASK_FORMER
    head.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    head.CONVS_DIM, head.MASK_DIM, head.NORM, head.TRANSFORMER_ENC_LAYERS = 32, 24, "GN", 3
    mask_former.NHEADS, mask_former.DIM_FEEDFORWARD, mask_former.DROPOUT, mask_former.PRE_NORM = 2, 40, 0.25, True
    mask_former.NUM_FEATURE_LEVELS = 2
    decoder = build_pixel_decoder(tiny_v1_cfg, SHAPES)
    encoder = decoder.transformer["encoder"]
    assert decoder.mask_features.weight.shape == (24, 32, 3, 3)
    assert isinstance(decoder.layer_1.norm, nn.GroupNorm)
    assert len(encoder.layers) == 3
    assert encoder.layers[0].linear1.weight.shape == (40, 32)
    assert encoder.layers[0].self_attn.num_heads == 2
    assert encoder.layers[0].self_attn.dropout == encoder.layers[0].dropout.p == 0.25
    assert encoder.layers[0].pre_norm
    assert "transformer.encoder.norm.weight" in decoder.state_dict()
    assert len(decoder.forward_features(backbone_features())[2]) == 2
