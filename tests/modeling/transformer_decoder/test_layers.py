"""Attention against PyTorch's own and against a loop over queries; the sub-layers against their formulas."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.transformer_decoder.layers import (
    MLP,
    CrossAttentionLayer,
    FFNLayer,
    MultiheadAttention,
    SelfAttentionLayer,
)


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def naive_attention(
    attention: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None
) -> Tensor:
    """One image, (Q, C) and (S, C): a query, and a head of it, at a time, over the keys that it may see."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    size = query.shape[-1] // attention.num_heads
    rows = []
    for index in range(len(query)):
        seen = torch.arange(len(key)) if attend is None else attend[index].nonzero().flatten()
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * size, (head + 1) * size)
            shares = (k[seen, part] @ q[index, part] / size**0.5).exp()
            heads.append((shares / shares.sum()) @ v[seen, part])
        rows.append(attention.out_proj(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_a_loop_over_queries(num_heads: int, masked: bool) -> None:
    attention = MultiheadAttention(8, num_heads)
    randomise(attention)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    attend = torch.rand(2, 3, 5) > 0.5 if masked else None
    if attend is not None:
        attend[:, :, 0] |= ~attend.any(-1)
    actual = attention(query, key, value, attend)
    for image in range(2):
        mask = None if attend is None else attend[image]
        expected = naive_attention(attention, query[image], key[image], value[image], mask)
        torch.testing.assert_close(actual[image], expected, atol=1e-5, rtol=1e-4)


def test_parameters_are_those_of_pytorch() -> None:
    theirs, ours = nn.MultiheadAttention(8, 2, batch_first=True), MultiheadAttention(8, 2)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    attend = torch.rand(2, 3, 5) > 0.3
    attend[:, :, 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~attend.repeat_interleave(2, dim=0))
    torch.testing.assert_close(ours(query, key, value, attend), expected, atol=1e-5, rtol=1e-4)


def test_no_mask_for_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = F.scaled_dot_product_attention

    def spy(*args: Tensor, attn_mask: Tensor, **options: float) -> Tensor:
        shapes.append(tuple(attn_mask.shape))
        return original(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attend = torch.ones(2, 3, 5, dtype=torch.bool)
    MultiheadAttention(8, 4)(torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8), attend)
    assert shapes == [(2, 1, 3, 5)]


def test_channels_that_the_heads_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"HIDDEN_DIM 10 does not divide by MODEL\.MASK_FORMER\.NHEADS 4; choose a"):
        MultiheadAttention(10, 4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_sub_layers_are_residuals_around_their_function(pre_norm: bool) -> None:
    x, pos = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    memory, memory_pos = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    self_attention, cross_attention = SelfAttentionLayer(8, 2, 0.0, pre_norm), CrossAttentionLayer(8, 2, 0.0, pre_norm)
    ffn = FFNLayer(8, 16, 0.0, pre_norm)
    for layer in (self_attention, cross_attention, ffn):
        randomise(layer)
    keys, values = (memory + memory_pos)[0], memory[0]
    cases = [
        (self_attention, (pos,), lambda y: naive_attention(self_attention.self_attn, (y + pos)[0], (y + pos)[0], y[0])),
        (
            cross_attention,
            (pos, memory, memory_pos, None),
            lambda y: naive_attention(cross_attention.multihead_attn, (y + pos)[0], keys, values),
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
