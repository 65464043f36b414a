"""The decoder against a naive one: a query at a time, its mask resized as an image; and every key."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.build import build_transformer_decoder
from mask2former.modeling.transformer_decoder.layers import MultiheadAttention

SIZES = [(2, 3), (3, 5), (4, 6), (8, 12)]  # coarse to fine
IN_CHANNELS = 16


def build(cfg: CfgNode, **keys: Any) -> MultiScaleMaskedTransformerDecoder:
    """With keys of ``MODEL.MASK_FORMER`` changed, and random weights with which masks are neither full nor empty."""
    for key, value in keys.items():
        cfg.MODEL.MASK_FORMER[key] = value
    decoder = build_transformer_decoder(cfg, IN_CHANNELS)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3)
    nn.init.normal_(decoder.query_feat.weight)
    return decoder


def make_inputs(cfg: CfgNode, levels: int) -> tuple[list[Tensor], Tensor]:
    maps = [torch.randn(2, IN_CHANNELS, *SIZES[level]) for level in range(levels)]
    return maps, torch.randn(2, cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, 16, 24)


def attend_one(attention: MultiheadAttention, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """The attention of one query (C,) to the keys (S, C) that it sees (S,)."""
    q, k, v = (
        x @ weight.T + bias
        for x, weight, bias in zip(
            (query, keys[seen], values[seen]),
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    size = len(query) // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        heads.append((k[:, part] @ q[part] / size**0.5).softmax(0) @ v[:, part])
    return attention.out_proj(torch.cat(heads))


def naive_decoder(
    decoder: MultiScaleMaskedTransformerDecoder, maps: list[Tensor], mask_features: Tensor
) -> tuple[list[dict[str, Tensor]], set[str]]:
    """Section 3.2 for one image, without batches: all predictions, and which kinds of masks gated attention."""
    query_pos = decoder.query_embed.weight
    x = decoder.query_feat.weight
    predictions, kinds = [], set()

    def predict(x: Tensor) -> dict[str, Tensor]:
        normed = decoder.decoder_norm(x)
        masks = [(embedding[:, None, None] * mask_features).sum(0) for embedding in decoder.mask_embed(normed)]
        return {"pred_logits": decoder.class_embed(normed), "pred_masks": torch.stack(masks)}

    layers = zip(
        decoder.transformer_cross_attention_layers,
        decoder.transformer_self_attention_layers,
        decoder.transformer_ffn_layers,
        strict=True,
    )
    for index, (cross, own, ffn) in enumerate(layers):
        predictions.append(predict(x))
        level = index % len(maps)
        height, width = maps[level].shape[-2:]
        values = decoder.input_proj[level](maps[level][None])[0].flatten(1).T + decoder.level_embed.weight[level]
        keys = values + decoder.pe_layer(height, width)[0].flatten(1).T
        updates = []
        for query, pos, mask in zip(x, query_pos, predictions[-1]["pred_masks"], strict=True):
            resized = F.interpolate(mask[None, None], size=(height, width), mode="bilinear", align_corners=False)
            seen = resized.flatten().sigmoid() >= 0.5
            kinds.add("empty" if not seen.any() else "full" if seen.all() else "partial")
            if not seen.any():
                seen = torch.ones_like(seen)
            updates.append(attend_one(cross.multihead_attn, query + pos, keys, values, seen))
        x = cross.norm(x + torch.stack(updates))
        everyone = torch.ones(len(x), dtype=torch.bool)
        positioned = x + query_pos
        updates = [attend_one(own.self_attn, query, positioned, x, everyone) for query in positioned]
        x = own.norm(x + torch.stack(updates))
        x = ffn.norm(x + ffn.linear2(F.relu(ffn.linear1(x))))
    return [*predictions, predict(x)], kinds


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_every_prediction_equals_the_naive_decoder(tiny_cfg: CfgNode, levels: int) -> None:
    decoder = build(tiny_cfg, NUM_FEATURE_LEVELS=levels, DEC_LAYERS=6).train()
    maps, mask_features = make_inputs(tiny_cfg, levels)
    nn.init.ones_(decoder.mask_embed.layers[-1].bias)
    mask_features[1] = -mask_features[1].abs()  # where embeddings are positive, masks are empty
    all_kinds = set()
    with torch.no_grad():
        output = decoder(maps, mask_features)
        predictions = [*output.pop("aux_outputs"), output]
        for image in range(2):
            expected, kinds = naive_decoder(decoder, [level[image] for level in maps], mask_features[image])
            all_kinds |= kinds
            assert len(predictions) == len(expected) == 6
            for ours, theirs in zip(predictions, expected, strict=True):
                for name, value in theirs.items():
                    torch.testing.assert_close(ours[name][image], value, atol=1e-3, rtol=1e-3)
    assert all_kinds >= {"empty", "partial"}


def test_every_key_shapes_its_part(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 20
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    decoder = build(
        tiny_cfg,
        HIDDEN_DIM=24,
        NHEADS=3,
        DIM_FEEDFORWARD=40,
        DEC_LAYERS=3,
        NUM_OBJECT_QUERIES=11,
        NUM_FEATURE_LEVELS=2,
        DECODER_DROPOUT=0.25,
        PRE_NORM=True,
    )
    assert decoder.query_feat.weight.shape == decoder.query_embed.weight.shape == (11, 24)
    assert decoder.level_embed.weight.shape == (2, 24)
    assert [projection.weight.shape for projection in decoder.input_proj] == [(24, IN_CHANNELS, 1, 1)] * 2
    assert decoder.class_embed.out_features == 8
    assert decoder.mask_embed.layers[-1].out_features == 20
    cross, ffn = decoder.transformer_cross_attention_layers, decoder.transformer_ffn_layers
    assert len(cross) == len(decoder.transformer_self_attention_layers) == len(ffn) == 2
    assert (cross[0].multihead_attn.num_heads, cross[0].pre_norm, cross[0].dropout.p) == (3, True, 0.25)
    assert (ffn[0].linear1.out_features, ffn[0].pre_norm, ffn[0].dropout.p) == (40, True, 0.25)
    output = decoder.eval()(*make_inputs(tiny_cfg, 2))
    assert output["pred_logits"].shape == (2, 11, 8)
    assert output["pred_masks"].shape == (2, 11, 16, 24)


@pytest.mark.parametrize(("enforce", "expected"), [(False, 0), (True, 3)])
def test_projection_where_the_channels_agree_already(tiny_cfg: CfgNode, enforce: bool, expected: int) -> None:
    decoder = build(tiny_cfg, HIDDEN_DIM=IN_CHANNELS, ENFORCE_INPUT_PROJ=enforce)
    assert sum(isinstance(module, nn.Conv2d) for module in decoder.input_proj.modules()) == expected
    assert decoder.eval()(*make_inputs(tiny_cfg, 3))["pred_masks"].shape == (2, 10, 16, 24)


@pytest.mark.parametrize(
    ("training", "deep_supervision", "expected"), [(True, True, 4), (True, False, 1), (False, True, 1)]
)
def test_only_what_is_needed_is_predicted(
    tiny_cfg: CfgNode, training: bool, deep_supervision: bool, expected: int
) -> None:
    decoder = build(tiny_cfg, DEEP_SUPERVISION=deep_supervision).train(training)
    calls: list[nn.Module] = []
    decoder.class_embed.register_forward_hook(lambda module, *_: calls.append(module))
    output = decoder(*make_inputs(tiny_cfg, 3))
    assert len(calls) == expected
    assert len(output.get("aux_outputs", [])) == expected - 1


def test_gates_get_no_gradient(tiny_cfg: CfgNode) -> None:
    decoder = build(tiny_cfg).train()
    maps, mask_features = make_inputs(tiny_cfg, 3)
    mask_features.requires_grad_()
    decoder(maps, mask_features)["pred_logits"].sum().backward()  # depends on the embedding through the gates alone
    assert mask_features.grad is None
    assert all(parameter.grad is None for parameter in decoder.mask_embed.parameters())


def test_masks_without_classes(tiny_cfg: CfgNode) -> None:
    decoder = build_transformer_decoder(tiny_cfg, IN_CHANNELS, mask_classification=False).eval()
    assert set(decoder(*make_inputs(tiny_cfg, 3))) == {"pred_masks"}
    assert not any(name.startswith("class_embed") for name, _ in decoder.named_parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DEC_LAYERS": 0}, r"DEC_LAYERS counts predictions.* at least 1 .*; it is 0"),
        ({"HIDDEN_DIM": 28, "NHEADS": 8}, r"28 channels \(MODEL.MASK_FORMER.HIDDEN_DIM .* do not divide by 8 heads"),
        ({"HIDDEN_DIM": 18, "NHEADS": 2}, "9 channels a coordinate"),
    ],
)
def test_impossible_keys_are_errors(tiny_cfg: CfgNode, keys: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny_cfg, **keys)


def test_another_number_of_scales_is_an_error(tiny_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"visits 3 scales \(MODEL.MASK_FORMER.NUM_FEATURE_LEVELS\), but .* gave 2"):
        build(tiny_cfg)(*make_inputs(tiny_cfg, 2))


OFFICIAL_ARGUMENTS = {
    "num_classes": 3,
    "hidden_dim": 32,
    "num_queries": 5,
    "nheads": 4,
    "dim_feedforward": 32,
    "dec_layers": 2,
    "pre_norm": False,
    "mask_dim": 32,
    "enforce_input_project": False,
}


def test_official_arguments_suffice() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(32, True, **OFFICIAL_ARGUMENTS).train()
    maps = [torch.randn(1, 32, size, size) for size in (2, 4, 8)]
    output = decoder(maps, torch.randn(1, 32, 16, 16), None)
    assert output["pred_masks"].shape == (1, 5, 16, 16)
    assert len(output["aux_outputs"]) == 2
