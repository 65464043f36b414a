"""The pixel decoders of Table 4e, against loops over pixels."""

import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from mask2former.modeling.build import build_pixel_decoder
from mask2former.modeling.pixel_decoder import (
    BiFPNPixelDecoder,
    FaPNPixelDecoder,
    FPNPixelDecoder,
    SemanticFPNPixelDecoder,
)
from mask2former.modeling.pixel_decoder.bifpn import BiFPNLayer
from mask2former.modeling.pixel_decoder.coarse_encoder import CoarseEncoder
from mask2former.modeling.pixel_decoder.fapn import FeatureAlignment, FeatureSelection

NAMES = ["FPNPixelDecoder", "SemanticFPNPixelDecoder", "FaPNPixelDecoder", "BiFPNPixelDecoder"]
CHANNELS = {"res2": 3, "res3": 4, "res4": 5}
SHAPES = {name: ShapeSpec(channels=channels, stride=4 * 2**i) for i, (name, channels) in enumerate(CHANNELS.items())}
ARGUMENTS = {"conv_dim": 4, "mask_dim": 6, "norm": "", "common_stride": 4, "num_feature_levels": 2}


def _features(height: int = 8, width: int = 12) -> dict[str, Tensor]:
    return {
        name: torch.randn(1, channels, height // 2**i, width // 2**i)
        for i, (name, channels) in enumerate(CHANNELS.items())
    }


def _randomise(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def naive_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolution of stride 1 of x (C, H, W) that keeps the size, a pixel at a time."""
    _, height, width = x.shape
    reach = conv.kernel_size[0] // 2
    per_group = conv.in_channels // conv.groups
    result = torch.zeros(conv.out_channels, height, width)
    for c in range(conv.out_channels):
        group = c // (conv.out_channels // conv.groups)
        channels = x[group * per_group : (group + 1) * per_group]
        for row in range(height):
            for column in range(width):
                total = torch.zeros(()) if conv.bias is None else conv.bias[c].clone()
                for dy in range(-reach, reach + 1):
                    for dx in range(-reach, reach + 1):
                        if 0 <= row + dy < height and 0 <= column + dx < width:
                            tap = conv.weight[c, :, reach + dy, reach + dx]
                            total += (tap * channels[:, row + dy, column + dx]).sum()
                result[c, row, column] = total
    return result


def bilinear(x: Tensor, row: float, column: float) -> Tensor:
    """Sample of x (C, H, W) at a place in pixels, (C,); outside is zero."""
    total = torch.zeros(len(x))
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return total


def double(x: Tensor) -> Tensor:
    """Nearest upsampling of x (C, H, W) by two."""
    return torch.stack([x[:, r // 2, c // 2] for r in range(2 * x.shape[1]) for c in range(2 * x.shape[2])], 1).reshape(
        len(x), 2 * x.shape[1], 2 * x.shape[2]
    )


def double_bilinear(x: Tensor) -> Tensor:
    """Bilinear upsampling of x (C, H, W) by two, the border repeated."""
    _, height, width = x.shape
    result = torch.empty(len(x), 2 * height, 2 * width)
    for row in range(2 * height):
        for column in range(2 * width):
            r = min(max((row + 0.5) / 2 - 0.5, 0), height - 1)
            c = min(max((column + 0.5) / 2 - 0.5, 0), width - 1)
            result[:, row, column] = bilinear(x, r, c)
    return result


def halve(x: Tensor) -> Tensor:
    """Largest value of each 3 x 3 window around every second pixel of x (C, H, W)."""
    result = torch.empty(len(x), x.shape[1] // 2, x.shape[2] // 2)
    for row in range(result.shape[1]):
        for column in range(result.shape[2]):
            window = x[:, max(2 * row - 1, 0) : 2 * row + 2, max(2 * column - 1, 0) : 2 * column + 2]
            result[:, row, column] = window.flatten(1).max(1).values
    return result


def naive_fpn(decoder: FPNPixelDecoder, features: dict[str, Tensor]) -> list[Tensor]:
    """Maps (C, H, W), coarse to fine."""
    sums: list[Tensor] = []
    for name, lateral in zip(["res4", "res3", "res2"], decoder.lateral, strict=True):
        x = naive_conv(features[name][0], lateral)
        sums.append(x + double(sums[-1]) if sums else x)
    return [naive_conv(x, output) for x, output in zip(sums, decoder.output, strict=True)]


def _assert_maps(decoder: nn.Module, features: dict[str, Tensor], maps: list[Tensor], embedding: Tensor) -> None:
    mask_features, coarsest, multi_scale = decoder.forward_features(features)
    assert len(multi_scale) == 2
    for actual, expected in zip(multi_scale, maps, strict=False):
        torch.testing.assert_close(actual[0], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(coarsest, multi_scale[0])
    torch.testing.assert_close(mask_features[0], embedding, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_fpn_equals_loops() -> None:
    decoder, features = _randomise(FPNPixelDecoder(SHAPES, **ARGUMENTS)), _features()
    maps = naive_fpn(decoder, features)
    _assert_maps(decoder, features, maps, naive_conv(maps[-1], decoder.mask_features))


@torch.no_grad()
def test_semantic_fpn_equals_loops() -> None:
    decoder, features = _randomise(SemanticFPNPixelDecoder(SHAPES, branch_dim=2, **ARGUMENTS)), _features()
    maps = naive_fpn(decoder, features)
    coarse = double_bilinear(naive_conv(maps[0], decoder.branches[0][0]).clamp(min=0))
    coarse = double_bilinear(naive_conv(coarse, decoder.branches[0][1]).clamp(min=0))
    middle = double_bilinear(naive_conv(maps[1], decoder.branches[1][0]).clamp(min=0))
    fine = naive_conv(maps[2], decoder.branches[2][0]).clamp(min=0)
    _assert_maps(decoder, features, maps, naive_conv(coarse + middle + fine, decoder.mask_features))


@torch.no_grad()
def test_feature_selection_equals_loops() -> None:
    module, x = _randomise(FeatureSelection(3, 4, norm="")), torch.randn(1, 3, 4, 5)
    mean = torch.stack([sum(x[0, c].flatten()) / 20 for c in range(3)])
    importance = 1 / (1 + torch.exp(-(module.importance.weight[:, :, 0, 0] @ mean + module.importance.bias)))
    weighted = torch.stack([x[0, c] + importance[c] * x[0, c] for c in range(3)])
    torch.testing.assert_close(module(x)[0], naive_conv(weighted, module.select), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_feature_alignment_equals_loops() -> None:
    groups, channels = 2, 4
    module = _randomise(FeatureAlignment(channels, groups))
    upsampled, finer = torch.randn(1, channels, 4, 5), torch.randn(1, channels, 4, 5)
    predicted = naive_conv(naive_conv(torch.cat([finer, upsampled], 1)[0], module.offset_features), module.offsets)
    offsets = predicted[: 18 * groups].reshape(groups, 9, 2, 4, 5)  # (row, column) of each sample
    weights = 1 / (1 + torch.exp(-predicted[18 * groups :].reshape(groups, 9, 4, 5)))
    expected = torch.empty(channels, 4, 5)
    for row in range(4):
        for column in range(5):
            total = module.align.bias.clone()
            for tap in range(9):
                ky, kx = divmod(tap, 3)
                sampled = []
                for group in range(groups):
                    part = upsampled[0, group * 2 : group * 2 + 2]
                    dy, dx = offsets[group, tap, :, row, column].tolist()
                    sample = bilinear(part, row + ky - 1 + dy, column + kx - 1 + dx)
                    sampled.append(sample * weights[group, tap, row, column])
                total += module.align.weight[:, :, ky, kx] @ torch.cat(sampled)
            expected[:, row, column] = total.clamp(min=0)
    torch.testing.assert_close(module(upsampled, finer)[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fapn_is_made_of_its_modules() -> None:
    decoder = _randomise(FaPNPixelDecoder(SHAPES, **(ARGUMENTS | {"conv_dim": 8})))
    features = _features()
    top = naive_conv(features["res4"][0], decoder.coarsest)
    selected = decoder.selection[0](features["res3"])
    middle = selected + decoder.alignment[0](double_bilinear(top)[None], selected)
    selected = decoder.selection[1](features["res2"])
    fine = selected + decoder.alignment[1](double_bilinear(middle[0])[None], selected)
    maps = [naive_conv(x, conv) for x, conv in zip((top, middle[0], fine[0]), decoder.output, strict=True)]
    _assert_maps(decoder, features, maps, naive_conv(maps[-1], decoder.mask_features))


def test_alignment_starts_as_half_an_ordinary_convolution() -> None:
    module, x = FeatureAlignment(8), torch.randn(1, 8, 5, 6)
    expected = torch.relu(torch.conv2d(x, module.align.weight, module.align.bias, padding=1) / 2)
    torch.testing.assert_close(module(x, torch.randn_like(x)), expected)


@torch.no_grad()
def test_bifpn_layer_equals_loops() -> None:
    layer = _randomise(BiFPNLayer(2, 3, norm=""))
    layer.bottom_up[0].weights[1] = -1.0  # is cut off at zero
    maps = [torch.randn(1, 2, 2, 3), torch.randn(1, 2, 4, 6), torch.randn(1, 2, 8, 12)]

    def fuse(module: nn.Module, *inputs: Tensor) -> Tensor:
        weights = [max(float(w), 0.0) for w in module.weights]
        total = sum(w * x for w, x in zip(weights, inputs, strict=True)) / (sum(weights) + 1e-4)
        return naive_conv(naive_conv(total / (1 + torch.exp(-total)), module.depthwise), module.pointwise)

    p5, p4, p3 = (x[0] for x in maps)
    p4_down = fuse(layer.top_down[0], p4, double(p5))
    p3_out = fuse(layer.top_down[1], p3, double(p4_down))
    p4_out = fuse(layer.bottom_up[0], p4, p4_down, halve(p3_out))
    p5_out = fuse(layer.bottom_up[1], p5, halve(p4_out))
    for actual, expected in zip(layer(maps), [p5_out, p4_out, p3_out], strict=True):
        torch.testing.assert_close(actual[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bifpn_projects_and_repeats() -> None:
    decoder, features = _randomise(BiFPNPixelDecoder(SHAPES, num_layers=2, **ARGUMENTS)), _features()
    maps = [
        naive_conv(features[name][0], lateral)[None]
        for name, lateral in zip(["res4", "res3", "res2"], decoder.lateral, strict=True)
    ]
    maps = [x[0] for x in decoder.layers[1](decoder.layers[0](maps))]
    _assert_maps(decoder, features, maps, naive_conv(maps[-1], decoder.mask_features))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (36, 52)])
def test_every_decoder_from_a_configuration(tiny_cfg: CfgNode, name: str, height: int, width: int) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = name
    tiny_cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    decoder = build_pixel_decoder(tiny_cfg, shapes)
    features = {
        name: torch.randn(2, 8, math.ceil(height / shape.stride), math.ceil(width / shape.stride))
        for name, shape in shapes.items()
    }
    mask_features, _, maps = decoder.forward_features(features)
    assert mask_features.shape == (2, 64, height // 4, width // 4)
    assert [x.shape[-2:] for x in maps] == [features[name].shape[-2:] for name in ("res5", "res4", "res3")]
    assert {x.shape[1] for x in maps} == {64}
    (mask_features.square().mean() + sum(x.square().mean() for x in maps)).backward()
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close(tiny_cfg: CfgNode, name: str) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = name
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    decoder = build_pixel_decoder(tiny_cfg, shapes).eval()
    features = {name: torch.randn(1, 8, 64 // shape.stride, 64 // shape.stride) for name, shape in shapes.items()}
    with torch.no_grad():
        exact, _, _ = decoder.forward_features(features)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _, _ = decoder.forward_features(features)
    assert (exact - rounded).abs().mean() < 0.05 * exact.abs().mean()


def test_width_of_the_semantic_branch(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "SemanticFPNPixelDecoder"
    tiny_cfg.MODEL.SEM_SEG_HEAD.SEMANTIC_FPN_DIM = 32
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    decoder = build_pixel_decoder(tiny_cfg, shapes)
    assert [len(branch) for branch in decoder.branches] == [3, 2, 1, 1]
    assert decoder.branches[0][0].weight.shape[:2] == (32, 64)
    assert decoder.mask_features.weight.shape[:2] == (64, 32)


def test_features_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match=r"COMMON_STRIDE\), but the features of .* have \[16, 8, 4\]"):
        FPNPixelDecoder(SHAPES, **(ARGUMENTS | {"common_stride": 2}))
    with pytest.raises(ValueError, match="NUM_FEATURE_LEVELS is 4, but this pixel decoder makes 3 maps"):
        FaPNPixelDecoder(SHAPES, **(ARGUMENTS | {"num_feature_levels": 4}))
    with pytest.raises(ValueError, match="BIFPN_LAYERS is 0"):
        BiFPNPixelDecoder(SHAPES, num_layers=0, **ARGUMENTS)


@pytest.mark.parametrize("strides", [(4, 16), (4, 8, 8)])  # without res3, and with a dilated stage
def test_bifpn_fuses_neighbouring_scales(strides: tuple[int, ...]) -> None:
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=stride) for i, stride in enumerate(strides)}
    with pytest.raises(ValueError, match=rf"BiFPN halves a map .* strides \[{strides[-1]}, .*PIXEL_DECODER_NAME"):
        BiFPNPixelDecoder(shapes, num_layers=1, **(ARGUMENTS | {"num_feature_levels": 1}))


@torch.no_grad()
def test_encoder_refines_the_coarsest_map_alone() -> None:
    encoder = CoarseEncoder(4, num_layers=2, num_heads=2, dim_feedforward=6)
    decoder = FPNPixelDecoder(SHAPES, encoder=encoder, **ARGUMENTS)
    _randomise(decoder)
    features = _features()
    coarse = naive_encoder(encoder, naive_conv(features["res4"][0], decoder.lateral[0]))
    middle = naive_conv(features["res3"][0], decoder.lateral[1]) + double(coarse)
    maps = [naive_conv(x, output) for x, output in zip((coarse, middle), decoder.output, strict=False)]
    _, _, actual = decoder.forward_features(features)
    for one, expected in zip(actual, maps, strict=True):
        torch.testing.assert_close(one[0], expected, atol=1e-4, rtol=1e-4)


def naive_encoder(encoder: CoarseEncoder, x: Tensor) -> Tensor:
    """Post-norm self-attention and feed-forward network of a map (C, H, W), a pixel at a time."""
    channels, height, width = x.shape
    pos = encoder.pe_layer(height, width)[0].flatten(1).T
    tokens = x.flatten(1).T
    for layer in encoder.layers:
        attention, size = layer.self_attn, channels // layer.self_attn.num_heads
        weights, biases = attention.in_proj_weight.split(channels), attention.in_proj_bias.split(channels)
        updated = []
        for token in range(len(tokens)):
            heads = []
            for head in range(attention.num_heads):
                rows = slice(head * size, (head + 1) * size)
                query = weights[0][rows] @ (tokens[token] + pos[token]) + biases[0][rows]
                keys = [weights[1][rows] @ (t + p) + biases[1][rows] for t, p in zip(tokens, pos, strict=True)]
                values = [weights[2][rows] @ t + biases[2][rows] for t in tokens]
                exponentials = [math.exp(float((query * key).sum()) / math.sqrt(size)) for key in keys]
                heads.append(sum(e / sum(exponentials) * v for e, v in zip(exponentials, values, strict=True)))
            y = layer.norm1(tokens[token] + attention.out_proj(torch.cat(heads)))
            hidden = (layer.linear1.weight @ y + layer.linear1.bias).clamp(min=0)
            updated.append(layer.norm2(y + layer.linear2.weight @ hidden + layer.linear2.bias))
        tokens = torch.stack(updated)
    return tokens.T.reshape(channels, height, width)


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_uses_the_encoder(tiny_cfg: CfgNode, name: str) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = name
    tiny_cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 2
    mask_former = tiny_cfg.MODEL.MASK_FORMER
    mask_former.NHEADS, mask_former.DIM_FEEDFORWARD, mask_former.DROPOUT, mask_former.PRE_NORM = 2, 40, 0.25, True
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    decoder = build_pixel_decoder(tiny_cfg, shapes)
    called: list[torch.Size] = []
    decoder.encoder.register_forward_pre_hook(lambda _, arguments: called.append(arguments[0].shape))
    decoder.forward_features({key: torch.randn(1, 8, 64 // s.stride, 64 // s.stride) for key, s in shapes.items()})
    assert called == [(1, 64, 2, 2)]
    assert len(decoder.encoder.layers) == 2
    for layer in decoder.encoder.layers:
        assert layer.linear1.weight.shape == (40, 64)
        assert layer.self_attn.num_heads == 2
        assert layer.self_attn.dropout == layer.dropout.p == 0.25
        assert layer.pre_norm
