"""DETR's decoder for masks: what its options do, and properties that hold for any weights."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from mask2former.modeling.build import build_transformer_decoder
from mask2former.modeling.transformer_decoder import StandardTransformerDecoder


def decoder(**changes: Any) -> StandardTransformerDecoder:
    arguments: dict[str, Any] = {
        "in_channels": 8,
        "num_classes": 5,
        "hidden_dim": 16,
        "num_queries": 6,
        "nheads": 4,
        "dropout": 0.0,
        "dim_feedforward": 24,
        "enc_layers": 1,
        "dec_layers": 3,
        "pre_norm": False,
        "deep_supervision": True,
        "mask_dim": 12,
        "enforce_input_project": False,
    }
    model = StandardTransformerDecoder(**(arguments | changes))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "query" in name else 0.3)
    return model


def inputs(channels: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, channels, 3, 4), torch.randn(2, 12, 10, 14)


def test_shapes_and_auxiliary_predictions_are_of_training() -> None:
    model, (x, mask_features) = decoder(), inputs()
    output = model.train()(x, mask_features)
    assert output["pred_logits"].shape == (2, 6, 6)
    assert output["pred_masks"].shape == (2, 6, 10, 14)
    assert [set(auxiliary) for auxiliary in output["aux_outputs"]] == [{"pred_logits", "pred_masks"}] * 2
    assert set(model.eval()(x, mask_features)) == {"pred_logits", "pred_masks"}
    assert "aux_outputs" not in decoder(deep_supervision=False).train()(x, mask_features)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_auxiliary_predictions_are_those_of_shorter_decoders(pre_norm: bool) -> None:
    model, (x, mask_features) = decoder(pre_norm=pre_norm), inputs()
    auxiliary = model.train()(x, mask_features)["aux_outputs"]
    for layers, expected in enumerate(auxiliary, start=1):
        shorter = decoder(pre_norm=pre_norm, dec_layers=layers)
        shorter.load_state_dict(model.state_dict(), strict=False)
        actual = shorter.eval()(x, mask_features)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value)


def test_queries_differ_by_their_position_alone() -> None:
    model, (x, mask_features) = decoder().eval(), inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    before = model(x, mask_features)
    with torch.no_grad():
        model.query_embed.weight.copy_(model.query_embed.weight[order])
    after = model(x, mask_features)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value[:, order])


def test_masks_are_dot_products_with_the_embedding() -> None:
    model, (x, mask_features) = decoder().eval(), inputs()
    halves = [model(x, part)["pred_masks"] for part in (mask_features[:, :, :5], mask_features[:, :, 5:])]
    torch.testing.assert_close(torch.cat(halves, dim=2), model(x, mask_features)["pred_masks"])
    torch.testing.assert_close(model(x, 3 * mask_features)["pred_masks"], 3 * model(x, mask_features)["pred_masks"])


def test_the_places_of_pixels_matter() -> None:
    model, (x, mask_features) = decoder(enc_layers=0).eval(), inputs()
    logits = [model(y, mask_features)["pred_logits"] for y in (x, x.flip(-1))]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("channels", "enforce", "projected"), [(16, False, False), (16, True, True), (8, False, True)])
def test_projection_of_the_input(channels: int, enforce: bool, projected: bool) -> None:
    model = decoder(in_channels=channels, enforce_input_project=enforce)
    assert ("input_proj.weight" in model.state_dict()) == projected
    assert model(*inputs(channels))["pred_logits"].shape == (2, 6, 6)


def test_masks_alone() -> None:
    output = decoder(mask_classification=False).train()(*inputs())
    assert set(output) == {"pred_masks", "aux_outputs"}
    assert [set(auxiliary) for auxiliary in output["aux_outputs"]] == [{"pred_masks"}] * 2


def test_configuration_keys(tiny_v1_cfg: CfgNode) -> None:
    mask_former = tiny_v1_cfg.MODEL.MASK_FORMER
    mask_former.HIDDEN_DIM, mask_former.NHEADS, mask_former.DIM_FEEDFORWARD, mask_former.DROPOUT = 24, 3, 36, 0.125
    mask_former.ENC_LAYERS, mask_former.DEC_LAYERS, mask_former.PRE_NORM = 2, 4, True
    mask_former.NUM_OBJECT_QUERIES, mask_former.DEEP_SUPERVISION, mask_former.ENFORCE_INPUT_PROJ = 7, False, True
    model = build_transformer_decoder(tiny_v1_cfg, 24)
    encoder, layers = model.transformer["encoder"], model.transformer["decoder"].layers
    assert (len(encoder.layers), len(layers)) == (2, 4)
    assert encoder.layers[0].pre_norm
    assert layers[0].pre_norm
    assert layers[0].multihead_attn.num_heads == 3
    assert layers[0].multihead_attn.dropout == layers[0].dropout.p == 0.125
    assert layers[0].linear1.weight.shape == (36, 24)
    assert model.query_embed.weight.shape == (7, 24)
    assert model.class_embed.weight.shape == (4, 24)
    assert model.mask_embed.layers[-1].weight.shape == (64, 24)
    assert model.input_proj.weight.shape == (24, 24, 1, 1)
    assert "aux_outputs" not in model.train()(torch.randn(1, 24, 2, 2), torch.randn(1, 64, 4, 4))


def test_a_decoder_without_layers(tiny_v1_cfg: CfgNode) -> None:
    tiny_v1_cfg.MODEL.MASK_FORMER.DEC_LAYERS = 0
    with pytest.raises(ValueError, match=r"DEC_LAYERS is the number of .* must be one at least .*; it is 0"):
        build_transformer_decoder(tiny_v1_cfg, 64)


def test_decoders_of_one_map_and_of_several(tiny_v1_cfg: CfgNode) -> None:
    mask_former = tiny_v1_cfg.MODEL.MASK_FORMER
    mask_former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    with pytest.raises(ValueError, match="StandardTransformerDecoder reads one map"):
        build_transformer_decoder(tiny_v1_cfg, 64)
    mask_former.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    mask_former.TRANSFORMER_IN_FEATURE = "res5"
    with pytest.raises(ValueError, match=r"reads several maps, .*TRANSFORMER_IN_FEATURE is 'res5'"):
        build_transformer_decoder(tiny_v1_cfg, 64)


@pytest.mark.parametrize(("of_decoder", "expected"), [(0.25, 0.25), (0.0, 0.0), (None, 0.125)])
def test_dropout_of_the_decoder_alone(tiny_v1_cfg: CfgNode, of_decoder: float | None, expected: float) -> None:
    mask_former = tiny_v1_cfg.MODEL.MASK_FORMER
    mask_former.DROPOUT, mask_former.DECODER_DROPOUT = 0.125, of_decoder
    assert build_transformer_decoder(tiny_v1_cfg, 64).transformer["decoder"].layers[0].dropout.p == expected
