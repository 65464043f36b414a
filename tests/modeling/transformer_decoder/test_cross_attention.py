"""Every way to read pixels, against loops over queries, heads and pixels."""

import math

import pytest
import torch
from torch import Tensor

from mask2former.modeling.attention import MultiheadAttention
from mask2former.modeling.build import build_cross_attention
from mask2former.modeling.transformer_decoder.layers import CrossAttentionLayer, ResidualLayer
from mask2former.modeling.transformer_decoder.mask_pooling import MaskPoolingLayer, pool
from mask2former.modeling.transformer_decoder.scales import Scale, all_at_once
from mask2former.modeling.transformer_decoder.smca import SMCALayer

CHANNELS, HEADS, QUERIES = 8, 2, 3
SHAPES = [(2, 3), (4, 5)]


def _scale(shapes: list[tuple[int, int]], images: int = 2) -> Scale:
    pixels = sum(height * width for height, width in shapes)
    return Scale(
        memory=torch.randn(images, pixels, CHANNELS),
        keys=torch.randn(images, pixels, CHANNELS),
        mask_features=torch.randn(images, 4, pixels),
        shapes=shapes,
    )


def _randomise(layer: torch.nn.Module) -> None:
    """No parameter stays at a value, 0 or 1, at which an error in its use would not show."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)


def _queries(images: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(images, QUERIES, CHANNELS), torch.randn(1, QUERIES, CHANNELS)


def _layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


def _attention_of_one_query(
    attention: MultiheadAttention, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> Tensor:
    """Softmax attention of query (C,) over keys and values (S, C) with logits raised by bias (M, S); (C,)."""
    size = CHANNELS // HEADS
    w, b = attention.in_proj_weight, attention.in_proj_bias
    heads = []
    for head in range(HEADS):
        rows = [slice(part * CHANNELS + head * size, part * CHANNELS + (head + 1) * size) for part in range(3)]
        q = w[rows[0]] @ query + b[rows[0]]
        logits, projected = [], []
        for pixel in range(len(keys)):
            k = w[rows[1]] @ keys[pixel] + b[rows[1]]
            logits.append(float((q * k).sum()) / math.sqrt(size) + float(bias[head, pixel]))
            projected.append(w[rows[2]] @ values[pixel] + b[rows[2]])
        exponentials = [math.exp(logit - max(logits)) for logit in logits]
        heads.append(sum(e / sum(exponentials) * v for e, v in zip(exponentials, projected, strict=True)))
    return attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias


def _naive_layer(layer: CrossAttentionLayer, x: Tensor, query_pos: Tensor, scale: Scale, bias: Tensor) -> Tensor:
    """Post-norm attention with bias (N, M, Q, S), a query at a time."""
    result = torch.empty_like(x)
    for n in range(len(x)):
        for q in range(QUERIES):
            update = _attention_of_one_query(
                layer.multihead_attn, x[n, q] + query_pos[0, q], scale.keys[n], scale.memory[n], bias[n, :, q]
            )
            result[n, q] = _layer_norm(x[n, q] + update, layer.norm)
    return result


@torch.no_grad()
def test_plain_and_masked_attention_equal_loops() -> None:
    (x, query_pos), scale = _queries(), _scale(SHAPES[:1])
    attend = torch.rand(2, QUERIES, scale.memory.shape[1]) > 0.5
    attend[:, :, 0] = True
    for name, mask in (("CrossAttentionLayer", None), ("MaskedAttentionLayer", attend)):
        layer = build_cross_attention(name, CHANNELS, HEADS)
        _randomise(layer)
        bias = torch.zeros(2, HEADS, QUERIES, scale.memory.shape[1])
        if mask is not None:
            bias.masked_fill_(~mask[:, None], -math.inf)
        expected = _naive_layer(layer, x, query_pos, scale, bias)
        torch.testing.assert_close(layer(x, query_pos, scale, mask), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shapes", [SHAPES[:1], SHAPES])
def test_smca_equals_loops(shapes: list[tuple[int, int]]) -> None:
    (x, query_pos), scale = _queries(), _scale(shapes)
    layer = SMCALayer(CHANNELS, HEADS)
    _randomise(layer)
    log_gaussian = torch.empty(2, HEADS, QUERIES, scale.memory.shape[1])
    for n in range(2):
        for q in range(QUERIES):
            query = x[n, q] + query_pos[0, q]
            hidden = (layer.center.layers[0].weight @ query + layer.center.layers[0].bias).clamp(min=0)
            center = 1 / (1 + torch.exp(-(layer.center.layers[1].weight @ hidden + layer.center.layers[1].bias)))
            offsets = layer.offset.weight @ query + layer.offset.bias
            scales = layer.scale.weight @ query + layer.scale.bias
            for head in range(HEADS):
                cx, cy = (float(center[i] + offsets[2 * head + i]) for i in range(2))
                sx, sy = (float(scales[2 * head + i]) for i in range(2))
                pixel = 0
                for height, width in shapes:
                    for row in range(height):
                        for column in range(width):
                            dx, dy = (column + 0.5) / width - cx, (row + 0.5) / height - cy
                            log_gaussian[n, head, q, pixel] = -(dx**2) / sx**2 - dy**2 / sy**2
                            pixel += 1
    torch.testing.assert_close(layer.log_gaussian(x + query_pos, shapes), log_gaussian, atol=1e-4, rtol=1e-3)
    expected = _naive_layer(layer, x, query_pos, scale, log_gaussian)
    torch.testing.assert_close(layer(x, query_pos, scale), expected, atol=1e-4, rtol=1e-4)


def test_smca_starts_near_plain_attention_with_heads_apart() -> None:
    layer = SMCALayer(CHANNELS, HEADS)
    log_gaussian = layer.log_gaussian(torch.randn(1, QUERIES, CHANNELS), [(4, 4)])
    assert log_gaussian.min() > -2.5  # a weight of at least 0.08 everywhere
    assert not torch.allclose(log_gaussian[:, 0], log_gaussian[:, 1])


def test_smca_with_vanishing_scale_is_finite() -> None:
    layer = SMCALayer(CHANNELS, HEADS)
    torch.nn.init.zeros_(layer.scale.bias)
    x, query_pos = _queries()
    layer(x, query_pos, _scale(SHAPES)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters() if parameter.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [False, True])
def test_mask_pooling_equals_loops(pre_norm: bool) -> None:
    (x, query_pos), scale = _queries(), _scale(SHAPES[:1])
    masks = torch.rand(2, QUERIES, scale.memory.shape[1]) > 0.5
    masks[:, :, 0] = True
    layer = MaskPoolingLayer(CHANNELS, HEADS, pre_norm=pre_norm)
    _randomise(layer)

    def linear(module: torch.nn.Linear, value: Tensor) -> Tensor:
        return module.weight @ value + module.bias

    def psi(module: torch.nn.Sequential, value: Tensor) -> Tensor:
        return _layer_norm(linear(module[0], value), module[1])

    expected = torch.empty_like(x)
    for n in range(2):
        for q in range(QUERIES):
            inside = [scale.memory[n, s] for s in range(masks.shape[2]) if masks[n, q, s]]
            feature = sum(inside) / len(inside)
            query = (_layer_norm(x[n, q], layer.norm) if pre_norm else x[n, q]) + query_pos[0, q]
            gate = linear(layer.feature_to_gate, feature) * linear(layer.query_to_gate, query)
            gate_feature = 1 / (1 + torch.exp(-psi(layer.feature_gate, gate)))
            gate_query = 1 / (1 + torch.exp(-psi(layer.query_gate, gate)))
            new = gate_feature * psi(layer.feature_update, feature) + gate_query * psi(layer.query_update, query)
            expected[n, q] = new if pre_norm else _layer_norm(new, layer.norm)
    torch.testing.assert_close(layer(x, query_pos, scale, masks), expected, atol=1e-5, rtol=1e-4)


def test_pooling_without_masks_is_that_of_full_masks() -> None:
    memory = torch.randn(2, 6, CHANNELS)
    full = torch.ones(2, QUERIES, 6, dtype=torch.bool)
    torch.testing.assert_close(pool(memory, None).expand(-1, QUERIES, -1), pool(memory, full))


@pytest.mark.parametrize("pixels", [20000, 70000])
def test_large_masks_do_not_overflow_half_precision(pixels: int) -> None:
    memory = torch.full((1, pixels, 1), 8.0, dtype=torch.float16)
    pooled = pool(memory, torch.ones(1, QUERIES, pixels, dtype=torch.bool))
    torch.testing.assert_close(pooled, torch.full_like(pooled, 8.0), rtol=0.01, atol=0)


def test_mask_pooling_in_float16_is_close_to_float32() -> None:
    layer = MaskPoolingLayer(CHANNELS, HEADS).eval()
    (x, query_pos), scale = _queries(), _scale(SHAPES)
    attend = torch.ones(2, QUERIES, scale.memory.shape[1], dtype=torch.bool)
    exact = layer(x, query_pos, scale, attend)
    half = scale._replace(memory=scale.memory.half())
    rounded = layer.half()(x.half(), query_pos.half(), half, attend)
    assert (rounded - exact).abs().max() < 0.02


@pytest.mark.parametrize("name", ["CrossAttentionLayer", "MaskedAttentionLayer", "SMCALayer", "MaskPoolingLayer"])
def test_runs_under_autocast_close_to_float32(name: str) -> None:
    layer = build_cross_attention(name, CHANNELS, HEADS).eval()
    (x, query_pos), scale = _queries(), _scale(SHAPES)
    attend = torch.ones(2, QUERIES, scale.memory.shape[1], dtype=torch.bool) if layer.reads_masks else None
    exact = layer(x, query_pos, scale, attend)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x, query_pos, scale, attend)
    assert (rounded - exact).abs().max() < 0.1


def test_all_at_once_concatenates_pixels() -> None:
    scales = [_scale(SHAPES[:1]), _scale(SHAPES[1:])]
    (joint,) = all_at_once(scales)
    assert joint.shapes == SHAPES
    assert torch.equal(joint.memory[:, :6], scales[0].memory)
    assert torch.equal(joint.mask_features[:, :, 6:], scales[1].mask_features)
    assert torch.equal(joint.keys[:, 6:], scales[1].keys)


def test_unknown_cross_attention_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"CROSS_ATTENTION_NAME is 'Perceiver'; registered are \['CrossAttentionLayer'"
    ):
        build_cross_attention("Perceiver", CHANNELS, HEADS)


def test_dropout_is_in_every_sub_layer() -> None:
    for name in ("CrossAttentionLayer", "MaskedAttentionLayer", "SMCALayer", "MaskPoolingLayer"):
        layer = build_cross_attention(name, CHANNELS, HEADS, dropout=0.5)
        assert isinstance(layer, ResidualLayer)
        (x, query_pos), scale = _queries(), _scale(SHAPES)
        assert not torch.equal(layer(x, query_pos, scale, None), layer(x, query_pos, scale, None)), name
        layer.eval()
        assert torch.equal(layer(x, query_pos, scale, None), layer(x, query_pos, scale, None)), name
