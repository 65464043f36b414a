"""The Transformer decoder's variants of Tables 4a to 4d."""

import itertools
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from mask2former.modeling.build import CROSS_ATTENTION_REGISTRY, build_pixel_decoder, build_transformer_decoder
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder

CHANNELS, QUERIES, LAYERS = 8, 5, 4
SIZES = [(2, 3), (4, 6), (8, 12)]


def _decoder(**options: Any) -> MultiScaleMaskedTransformerDecoder:
    arguments: dict[str, Any] = {
        "in_channels": CHANNELS,
        "num_classes": 3,
        "hidden_dim": CHANNELS,
        "num_queries": QUERIES,
        "nheads": 2,
        "dim_feedforward": 16,
        "dec_layers": LAYERS,
        "dropout": 0.0,
        "pre_norm": False,
        "mask_dim": 6,
        "enforce_input_project": False,
        "num_feature_levels": 3,
        "deep_supervision": True,
    }
    return MultiScaleMaskedTransformerDecoder(**(arguments | options))


def _inputs(images: int = 2) -> tuple[list[Tensor], Tensor]:
    return [torch.randn(images, CHANNELS, *size) for size in SIZES], torch.randn(images, 6, 16, 24)


def _watch(decoder: MultiScaleMaskedTransformerDecoder) -> list[dict[str, Any]]:
    """What every sub-layer is called with, in the order of the calls."""
    calls: list[dict[str, Any]] = []

    def note(kind: str) -> Any:
        return lambda module, arguments: calls.append({"kind": kind, "arguments": arguments})

    for kind in ("cross", "self", "ffn"):
        name = {"cross": "cross_attention", "self": "self_attention", "ffn": "ffn"}[kind]
        for layer in getattr(decoder, f"transformer_{name}_layers"):
            layer.register_forward_pre_hook(note(kind))
    return calls


def _shapes_read(decoder: MultiScaleMaskedTransformerDecoder) -> list[list[tuple[int, int]]]:
    calls = _watch(decoder)
    decoder(*_inputs())
    return [call["arguments"][2].shapes for call in calls if call["kind"] == "cross"]


def test_default_has_the_official_parameters_only() -> None:
    names = {name.split(".")[0] for name in _decoder().state_dict()}
    assert names == {
        "class_embed",
        "decoder_norm",
        "level_embed",
        "mask_embed",
        "query_embed",
        "query_feat",
        "transformer_cross_attention_layers",
        "transformer_ffn_layers",
        "transformer_self_attention_layers",
    }
    layer = {name for name in _decoder().state_dict() if name.startswith("transformer_cross_attention_layers.0.")}
    assert {name.split(".", 2)[2] for name in layer} == {
        "multihead_attn.in_proj_bias",
        "multihead_attn.in_proj_weight",
        "multihead_attn.out_proj.bias",
        "multihead_attn.out_proj.weight",
        "norm.bias",
        "norm.weight",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [SIZES[:1], SIZES[1:2], SIZES[2:], SIZES[:1]]),
        ({"feature_levels": [0]}, [SIZES[:1]] * 4),
        ({"feature_levels": [2]}, [SIZES[2:]] * 4),
        ({"feature_levels": [2, 0]}, [SIZES[2:], SIZES[:1]] * 2),
        ({"multi_scale": "naive"}, [SIZES] * 4),
        ({"multi_scale": "naive", "feature_levels": [1, 2]}, [SIZES[1:]] * 4),
    ],
)
def test_which_scales_a_layer_reads(options: dict[str, Any], expected: list[list[tuple[int, int]]]) -> None:
    assert _shapes_read(_decoder(**options)) == expected


def test_single_scale_reads_its_own_level_only() -> None:
    decoder = _decoder(feature_levels=[1]).eval()
    maps, mask_features = _inputs()
    changed = [torch.randn_like(maps[0]), maps[1], torch.randn_like(maps[2])]
    with torch.no_grad():
        assert torch.equal(decoder(maps, mask_features)["pred_masks"], decoder(changed, mask_features)["pred_masks"])
    assert decoder.level_embed.weight.shape == (1, CHANNELS)


def test_naive_multi_scale_of_one_scale_is_the_efficient_one() -> None:
    one, other = _decoder(feature_levels=[2]).eval(), _decoder(feature_levels=[2], multi_scale="naive").eval()
    other.load_state_dict(one.state_dict())
    inputs = _inputs()
    with torch.no_grad():
        assert torch.equal(one(*inputs)["pred_logits"], other(*inputs)["pred_logits"])


@pytest.mark.parametrize("self_first", [False, True])
def test_order_of_the_sub_layers(self_first: bool) -> None:
    decoder = _decoder(self_attention_first=self_first)
    calls = _watch(decoder)
    decoder(*_inputs())
    order = ["self", "cross", "ffn"] if self_first else ["cross", "self", "ffn"]
    assert [call["kind"] for call in calls] == order * LAYERS


@torch.no_grad()
def test_decoder_equals_its_equations_written_out() -> None:
    """One layer of naive multi-scale, self-attention first; masks come from the full-size prediction, resized."""
    decoder = _decoder(dec_layers=1, multi_scale="naive", self_attention_first=True).eval()
    maps, mask_features = _inputs(images=1)
    x, query_pos = decoder.query_feat.weight[None], decoder.query_embed.weight[None]
    embedding = decoder.mask_embed(decoder.decoder_norm(x))[0]
    attend, memory, pos = [], [], []
    for level, feature in enumerate(maps):
        full = torch.einsum("qc,chw->qhw", embedding, mask_features[0])
        small = torch.nn.functional.interpolate(full[None], size=feature.shape[-2:], mode="bilinear")[0]
        attend.append(small.sigmoid().flatten(1) >= 0.5)
        memory.append(feature[0].flatten(1).T + decoder.level_embed.weight[level])
        pos.append(decoder.pe_layer(*feature.shape[-2:])[0].flatten(1).T)
    mask = torch.cat(attend, dim=1)
    mask[~mask.any(dim=1)] = True
    x = decoder.transformer_self_attention_layers[0](x, query_pos)
    attention = decoder.transformer_cross_attention_layers[0]
    joined = torch.cat(memory)[None]
    update = attention.multihead_attn(x + query_pos, joined + torch.cat(pos)[None], joined, mask[None])
    x = decoder.transformer_ffn_layers[0](attention.norm(x + update))
    expected = torch.einsum("nqc,nchw->nqhw", decoder.mask_embed(decoder.decoder_norm(x)), mask_features)
    torch.testing.assert_close(decoder(maps, mask_features)["pred_masks"], expected, atol=1e-5, rtol=1e-4)


def test_zero_queries_are_not_supervised_and_read_all_pixels_first() -> None:
    decoder = _decoder(learnable_query_features=False)
    calls = _watch(decoder)
    outputs = decoder(*_inputs())
    assert len(outputs["aux_outputs"]) == LAYERS - 1
    assert not any(name.startswith("query_feat") for name in decoder.state_dict())
    cross = [call["arguments"] for call in calls if call["kind"] == "cross"]
    assert cross[0][0].abs().max() == 0
    assert cross[0][3] is None
    assert all(arguments[3].dtype == torch.bool for arguments in cross[1:])


@pytest.mark.parametrize("name", ["CrossAttentionLayer", "SMCALayer"])
def test_attention_without_masks_makes_none_in_inference(name: str) -> None:
    decoder = _decoder(cross_attention_name=name).eval()
    calls = _watch(decoder)
    embedded: list[int] = []
    decoder.mask_embed.register_forward_pre_hook(lambda *_: embedded.append(1))
    with torch.no_grad():
        decoder(*_inputs())
    assert len(embedded) == 1
    assert all(call["arguments"][3] is None for call in calls if call["kind"] == "cross")


@pytest.mark.parametrize("name", [name for name, _ in CROSS_ATTENTION_REGISTRY])
def test_every_combination_trains_every_parameter(name: str) -> None:
    for multi_scale, learnable, self_first, pre_norm in itertools.product(
        ("efficient", "naive"), (True, False), (True, False), (True, False)
    ):
        decoder = _decoder(
            cross_attention_name=name,
            multi_scale=multi_scale,
            learnable_query_features=learnable,
            self_attention_first=self_first,
            pre_norm=pre_norm,
        )
        outputs = decoder(*_inputs())
        predictions = [outputs, *outputs["aux_outputs"]]
        assert len(predictions) == (LAYERS + 1 if learnable else LAYERS)
        sum(p["pred_logits"].square().sum() + p["pred_masks"].square().sum() for p in predictions).backward()
        for parameter_name, parameter in decoder.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name


def test_dropout_of_the_decoder_alone(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DECODER_DROPOUT = 0.25
    decoder = build_transformer_decoder(tiny_cfg, 64)
    assert decoder.transformer_ffn_layers[0].dropout.p == 0.25
    assert decoder.transformer_cross_attention_layers[0].multihead_attn.dropout == 0.25
    tiny_cfg.MODEL.MASK_FORMER.DECODER_DROPOUT = None
    tiny_cfg.MODEL.MASK_FORMER.DROPOUT = 0.5  # which the official decoder does not read
    assert build_transformer_decoder(tiny_cfg, 64).transformer_ffn_layers[0].dropout.p == 0.0


def test_four_levels_reach_the_finest_map(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS = 4
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    features = {name: torch.randn(1, 8, 64 // shape.stride, 64 // shape.stride) for name, shape in shapes.items()}
    mask_features, _, maps = build_pixel_decoder(tiny_cfg, shapes).forward_features(features)
    decoder = build_transformer_decoder(tiny_cfg, 64).eval()
    calls = _watch(decoder)
    decoder(maps, mask_features)
    assert [call["arguments"][2].shapes for call in calls if call["kind"] == "cross"] == [[(2, 2)], [(4, 4)], [(8, 8)]]
    assert [tuple(x.shape[-2:]) for x in maps] == [(2, 2), (4, 4), (8, 8), (16, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_levels": [0, 3]}, r"names the scales \[3\], but the pixel decoder gives 3"),
        ({"multi_scale": "all"}, r"MULTI_SCALE is 'all'; expected one of \['efficient', 'naive'\]"),
        ({"cross_attention_name": "Nothing"}, "CROSS_ATTENTION_NAME is 'Nothing'"),
        ({"dec_layers": 0, "learnable_query_features": False}, "every query would stay zero"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _decoder(**options)
