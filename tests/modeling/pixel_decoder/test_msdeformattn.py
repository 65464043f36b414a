"""The pixel decoder: every key, any number of levels, and its upsampling path against the formula."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling import MSDeformAttnPixelDecoder
from mask2former.modeling.build import build_pixel_decoder

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
INPUT_SHAPE = {name: ShapeSpec(channels=2 * stride, stride=stride) for name, stride in STRIDES.items()}


def make_features(names: list[str] | None = None, height: int = 64, width: int = 96) -> dict[str, Tensor]:
    return {
        name: torch.randn(2, INPUT_SHAPE[name].channels, height // stride, width // stride)
        for name, stride in STRIDES.items()
        if names is None or name in names
    }


def build(cfg: CfgNode, **keys: Any) -> MSDeformAttnPixelDecoder:
    """With keys of ``MODEL.SEM_SEG_HEAD`` changed."""
    for key, value in keys.items():
        cfg.MODEL.SEM_SEG_HEAD[key] = value
    return build_pixel_decoder(cfg, {name: INPUT_SHAPE[name] for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES})


@pytest.mark.parametrize(
    ("in_features", "feature_levels", "adapters"),
    [
        (["res5"], 1, ["res2", "res3", "res4"]),
        (["res5"], 4, ["res2", "res3", "res4"]),
        (["res4", "res5"], 2, ["res2", "res3"]),
        (["res3", "res4", "res5"], 3, ["res2"]),
        (["res2", "res3", "res4", "res5"], 4, []),
    ],
)
def test_any_number_of_levels(
    tiny_cfg: CfgNode, in_features: list[str], feature_levels: int, adapters: list[str]
) -> None:
    tiny_cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS = feature_levels
    decoder = build(tiny_cfg, DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=in_features)
    mask_features, coarsest, maps = decoder.forward_features(make_features())
    assert mask_features.shape == (2, 64, 16, 24)
    assert [tuple(level.shape) for level in maps] == [(2, 64, 2 * 2**i, 3 * 2**i) for i in range(feature_levels)]
    assert coarsest is maps[0]
    attention = decoder.transformer.encoder.layers[0].self_attn
    assert attention.num_levels == len(in_features) == len(decoder.input_proj) == len(decoder.transformer.level_embed)
    channels = {n: m.in_channels for n, m in decoder.named_children() if n.startswith("adapter_")}
    assert channels == {f"adapter_{i}": INPUT_SHAPE[name].channels for i, name in enumerate(adapters, start=1)}


def test_every_key_shapes_its_part(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DROPOUT = 0.3
    decoder = build(
        tiny_cfg,
        CONVS_DIM=96,
        MASK_DIM=20,
        NORM="LN",
        TRANSFORMER_ENC_LAYERS=3,
        DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS=5,
        DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS=6,
        DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD=40,
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    assert shapes["mask_features.weight"] == (20, 96, 1, 1)
    layers = decoder.transformer.encoder.layers
    assert len(layers) == 3
    for layer in layers:
        assert (layer.self_attn.num_heads, layer.self_attn.num_points, layer.self_attn.num_levels) == (6, 5, 3)
        assert layer.self_attn.sampling_offsets.out_features == 6 * 3 * 5 * 2
        assert layer.linear1.out_features == layer.linear2.in_features == 40
        assert layer.dropout.p == 0.3
    assert type(decoder.adapter_1.norm).__name__ == "LayerNorm"
    assert decoder.adapter_1.bias is None
    mask_features, _, maps = decoder.forward_features(make_features())
    assert (mask_features.shape[1], {level.shape[1] for level in maps}) == (20, {96})
    assert build(tiny_cfg, NORM="").adapter_1.bias is not None


@pytest.mark.parametrize(
    ("in_features", "stride", "adapters"),
    [(["res5"], 8, ["res3", "res4"]), (["res3", "res4", "res5"], 8, []), (["res5"], 32, [])],
)
def test_embedding_has_the_common_stride(
    tiny_cfg: CfgNode, in_features: list[str], stride: int, adapters: list[str]
) -> None:
    tiny_cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS = 1
    decoder = build(tiny_cfg, DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=in_features, COMMON_STRIDE=stride)
    assert decoder.forward_features(make_features())[0].shape == (2, 64, 64 // stride, 96 // stride)
    assert [name for _, name in reversed(decoder.fpn_levels)] == adapters


def test_upsampling_path_equals_the_formula(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS = 2
    decoder = build(tiny_cfg, DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res4", "res5"]).eval()
    features = make_features()
    with torch.no_grad():
        projected = [decoder.input_proj[0](features["res5"]), decoder.input_proj[1](features["res4"])]
        positions = [decoder.pe_layer(*level.shape[-2:]) for level in projected]
        x = decoder.transformer(projected, positions)[-1]
        for name, adapter, layer in (
            ("res3", decoder.adapter_2, decoder.layer_2),
            ("res2", decoder.adapter_1, decoder.layer_1),
        ):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.relu(layer.norm(F.conv2d(adapter(features[name]) + x, layer.weight, padding=1)))
        expected = F.conv2d(x, decoder.mask_features.weight, decoder.mask_features.bias)
        actual, _, _ = decoder.forward_features(features)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_order_of_the_names_does_not_matter(tiny_cfg: CfgNode) -> None:
    torch.manual_seed(0)
    ordered = build(tiny_cfg)
    torch.manual_seed(0)
    shuffled = build(
        tiny_cfg,
        IN_FEATURES=["res4", "res2", "res5", "res3"],
        DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res5", "res3", "res4"],
    )
    features = make_features()
    assert torch.equal(ordered.forward_features(features)[0], shuffled.forward_features(features)[0])


def test_sizes_that_do_not_divide(tiny_cfg: CfgNode) -> None:
    features = {
        name: torch.randn(1, INPUT_SHAPE[name].channels, -(-50 // stride), -(-37 // stride))
        for name, stride in STRIDES.items()
    }
    mask_features, _, maps = build(tiny_cfg).forward_features(features)
    assert mask_features.shape[-2:] == (13, 10)
    assert [tuple(level.shape[-2:]) for level in maps] == [(2, 2), (4, 3), (7, 5)]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_autocast_is_bfloat16_or_none(tiny_cfg: CfgNode, dtype: torch.dtype, expected: torch.dtype) -> None:
    decoder, features = build(tiny_cfg).eval(), make_features()
    with torch.no_grad():
        full, _, _ = decoder.forward_features(features)
        with torch.autocast("cpu", dtype=dtype):
            half, _, _ = decoder.forward_features({name: x.to(dtype) for name, x in features.items()})
    assert half.dtype == expected
    assert (half - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res5", "res6"]},
            r"ENCODER_IN_FEATURES names \['res6'\], but the features given by .* are \['res2', 'res3', 'res4', 'res5",
        ),
        ({"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": []}, "ENCODER_IN_FEATURES names nothing"),
        ({"COMMON_STRIDE": 16}, r"COMMON_STRIDE is 16, but .* at the strides \[4, 8\]; choose one"),
        ({"IN_FEATURES": ["res3", "res4", "res5"]}, r"COMMON_STRIDE is 4, but .* at the strides \[8\]"),
        ({"CONVS_DIM": 48}, "CONVS_DIM is 48, but group norm takes channels in 32 groups; choose a multiple of 32"),
        ({"DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 5}, "64 channels do not divide by 5 heads"),
    ],
)
def test_impossible_keys_are_errors(tiny_cfg: CfgNode, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny_cfg, **keys)


def test_more_maps_than_there_are_is_an_error(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS = 5
    with pytest.raises(ValueError, match="NUM_FEATURE_LEVELS is 5, but the pixel decoder makes 4 maps"):
        build(tiny_cfg)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(tiny_cfg: CfgNode, dtype: torch.dtype) -> None:
    decoder, features = build(tiny_cfg).to(dtype), {name: x.to(dtype) for name, x in make_features().items()}
    with pytest.raises(ValueError, match=rf"weights are {dtype}, but it computes in float32; leave the model in float"):
        decoder.forward_features(features)


@torch.no_grad()
def test_weights_in_bfloat16_under_autocast(tiny_cfg: CfgNode) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build(tiny_cfg).bfloat16().forward_features(make_features())[0].dtype == torch.bfloat16
