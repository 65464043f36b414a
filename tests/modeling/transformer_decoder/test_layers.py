"""The sub-layers against their formulas."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.attention import MultiheadAttention
from mask2former.modeling.transformer_decoder.layers import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer
from mask2former.modeling.transformer_decoder.scales import Scale


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def attention_of_pytorch(attention: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By PyTorch's module, with the same parameters."""
    theirs = nn.MultiheadAttention(query.shape[-1], attention.num_heads, batch_first=True)
    theirs.load_state_dict(attention.state_dict(), strict=True)
    return theirs(query, key, value)[0]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_sub_layers_are_residuals_around_their_function(pre_norm: bool) -> None:
    x, pos = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    scale = Scale(
        memory=torch.randn(1, 5, 8), keys=torch.randn(1, 5, 8), mask_features=torch.randn(1, 8, 5), shapes=[(1, 5)]
    )
    self_attention, cross_attention = SelfAttentionLayer(8, 2, 0.0, pre_norm), CrossAttentionLayer(8, 2, 0.0, pre_norm)
    ffn = FFNLayer(8, 16, 0.0, pre_norm)
    for layer in (self_attention, cross_attention, ffn):
        randomise(layer)
    keys, values = scale.keys, scale.memory
    cases = [
        (self_attention, (pos,), lambda y: attention_of_pytorch(self_attention.self_attn, y + pos, y + pos, y)),
        (
            cross_attention,
            (pos, scale, None),
            lambda y: attention_of_pytorch(cross_attention.multihead_attn, y + pos, keys, values),
        ),
        (ffn, (), lambda y: ffn.linear2(F.relu(ffn.linear1(y)))),
    ]
    for layer, arguments, function in cases:
        expected = x + function(layer.norm(x)) if pre_norm else layer.norm(x + function(x))
        torch.testing.assert_close(layer(x, *arguments), expected, atol=1e-4, rtol=1e-4)


def test_dropout_is_for_training() -> None:
    x, pos = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    for layer, arguments in ((SelfAttentionLayer(8, 2, 0.5), (pos,)), (FFNLayer(8, 16, 0.5), ())):
        assert not torch.equal(layer.train()(x, *arguments), layer(x, *arguments))
        assert torch.equal(layer.eval()(x, *arguments), layer(x, *arguments))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_mlp_has_relu_between_its_layers(num_layers: int) -> None:
    mlp, x = MLP(4, 6, 5, num_layers), torch.randn(2, 4)
    expected = x
    for index, layer in enumerate(mlp.layers):
        expected = layer(expected if index == 0 else F.relu(expected))
    assert len(mlp.layers) == num_layers
    assert torch.equal(mlp(x), expected)
    assert expected.shape == (2, 5)
