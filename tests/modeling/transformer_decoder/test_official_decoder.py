"""Subclasses of the decoder that were written for the official release: with forward_prediction_heads and forward."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling import MultiScaleMaskedTransformerDecoder

ARGUMENTS: dict[str, Any] = {
    "num_classes": 3,
    "hidden_dim": 32,
    "num_queries": 5,
    "nheads": 4,
    "dim_feedforward": 48,
    "dec_layers": 4,
    "mask_dim": 16,
    "enforce_input_project": True,
}


class OwnHeads(MultiScaleMaskedTransformerDecoder):
    """Counts."""

    def forward_prediction_heads(self, output: Tensor, mask_features: Tensor, attn_mask_target_size: Any) -> Any:
        self.sizes = [*getattr(self, "sizes", []), tuple(attn_mask_target_size)]
        return super().forward_prediction_heads(output, mask_features, attn_mask_target_size)


class OwnForward(OwnHeads):
    """Reads each scale as the official forward does, with its layers' arguments."""

    def forward(self, x: list[Tensor], mask_features: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        query_pos = self.query_embed.weight.unsqueeze(1).repeat(1, len(mask_features), 1)
        output = self.query_feat.weight.unsqueeze(1).repeat(1, len(mask_features), 1)
        predictions = [self.forward_prediction_heads(output, mask_features, x[0].shape[-2:])]
        for i in range(self.num_layers):
            level = i % self.num_feature_levels
            memory = self.input_proj[level](x[level]).flatten(2) + self.level_embed.weight[level][None, :, None]
            attn_mask = predictions[-1][2]
            attn_mask[attn_mask.all(-1)] = False
            output = self.transformer_cross_attention_layers[i](
                output,
                memory.permute(2, 0, 1),
                memory_mask=attn_mask,
                memory_key_padding_mask=None,
                pos=self.pe_layer(x[level], None).flatten(2).permute(2, 0, 1),
                query_pos=query_pos,
            )
            output = self.transformer_self_attention_layers[i](
                output, tgt_mask=None, tgt_key_padding_mask=None, query_pos=query_pos
            )
            output = self.transformer_ffn_layers[i](output)
            size = x[(i + 1) % self.num_feature_levels].shape[-2:]
            predictions.append(self.forward_prediction_heads(output, mask_features, attn_mask_target_size=size))
        classes, masks, _ = map(list, zip(*predictions, strict=True))
        return {
            "pred_logits": classes[-1],
            "pred_masks": masks[-1],
            "aux_outputs": self._set_aux_loss(classes if self.mask_classification else None, masks),
        }


def with_random_weights(decoder: nn.Module) -> nn.Module:
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def inputs() -> tuple[list[Tensor], Tensor]:
    return [torch.randn(2, 24, size, size + 1) for size in (2, 4, 8)], torch.randn(2, 16, 16, 18)


def mask_tensors(output: dict[str, Any]) -> list[Tensor]:
    return [torch.as_tensor(each["pred_masks"].full()) for each in (output, *output["aux_outputs"])]


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("cls", [OwnHeads, OwnForward])
def test_the_same_predictions_and_gradients(cls: type[OwnHeads], pre_norm: bool) -> None:
    plain = with_random_weights(MultiScaleMaskedTransformerDecoder(24, pre_norm=pre_norm, **ARGUMENTS))
    own = cls(24, pre_norm=pre_norm, **ARGUMENTS)
    own.load_state_dict(plain.state_dict())
    maps, mask_features = inputs()
    expected, found = plain(maps, mask_features), own(maps, mask_features, None)
    torch.testing.assert_close(found["pred_logits"], expected["pred_logits"], rtol=1e-4, atol=1e-4)
    found_masks = [found["pred_masks"], *(each["pred_masks"] for each in found["aux_outputs"])]
    for one, other in zip(found_masks, mask_tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert own.sizes == [(2, 3), (4, 5), (8, 9), (2, 3), (4, 5)]

    found["pred_masks"].sum().backward()
    mask_tensors(expected)[0].sum().backward()
    for (name, one), other in zip(own.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max().item(), msg=name
            )


def test_one_whose_heads_decide_where_to_look() -> None:
    class LooksEverywhere(MultiScaleMaskedTransformerDecoder):
        def forward_prediction_heads(self, output: Tensor, mask_features: Tensor, attn_mask_target_size: Any) -> Any:
            *predictions, blocked = super().forward_prediction_heads(output, mask_features, attn_mask_target_size)
            return (*predictions, torch.zeros_like(blocked))

    own = with_random_weights(LooksEverywhere(24, pre_norm=False, **ARGUMENTS)).eval()
    plain = MultiScaleMaskedTransformerDecoder(
        24, pre_norm=False, **ARGUMENTS, cross_attention_name="CrossAttentionLayer"
    ).eval()
    plain.load_state_dict(own.state_dict())
    arguments = inputs()
    with torch.no_grad():
        torch.testing.assert_close(
            own(*arguments)["pred_logits"], plain(*arguments)["pred_logits"], rtol=1e-4, atol=1e-4
        )


def test_heads_that_are_put_into_the_class_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    official = MultiScaleMaskedTransformerDecoder.forward_prediction_heads
    sizes = []

    def patched(self: Any, output: Tensor, mask_features: Tensor, attn_mask_target_size: Any) -> Any:
        sizes.append(attn_mask_target_size)
        return official(self, output, mask_features, attn_mask_target_size)

    monkeypatch.setattr(MultiScaleMaskedTransformerDecoder, "forward_prediction_heads", patched)
    MultiScaleMaskedTransformerDecoder(24, pre_norm=False, **ARGUMENTS)(*inputs())
    assert len(sizes) == 5


def test_without_classes() -> None:
    own = OwnHeads(24, mask_classification=False, pre_norm=False, **ARGUMENTS)
    output = own(*inputs())
    assert set(output) == {"pred_masks", "aux_outputs"}
    assert [set(each) for each in output["aux_outputs"]] == [{"pred_masks"}] * 4


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"visits 3 scales \(MODEL.MASK_FORMER.NUM_FEATURE_LEVELS\), but .* gave 1"):
        OwnHeads(24, pre_norm=False, **ARGUMENTS)(inputs()[0][:1], inputs()[1])
    for name, value in {
        "feature_levels": [0],
        "multi_scale": "naive",
        "cross_attention_name": "CrossAttentionLayer",
        "learnable_query_features": False,
        "self_attention_first": True,
    }.items():
        with pytest.raises(ValueError, match=rf"which has no MODEL.MASK_FORMER.{name.upper()}; leave out the key"):
            OwnHeads(24, pre_norm=False, **ARGUMENTS, **{name: value})
