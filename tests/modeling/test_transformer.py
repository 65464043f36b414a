"""DETR's Transformer against torch's, which knows no positions, and against attention in loops, which does."""

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.attention import MultiheadAttention
from mask2former.modeling.transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

C, M, FFN = 12, 3, 20


def randomised(module: nn.Module) -> nn.Module:
    """Biases and norms that are not at their neutral first values, so that every one of them matters."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def attend_in_loops(attention: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k / sqrt(D)) v of one image, one head and one query at a time."""
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    d = C // attention.num_heads
    rows = []
    for q in query @ wq.T + bq:
        heads = []
        for m in range(attention.num_heads):
            part = slice(m * d, (m + 1) * d)
            scores = torch.stack([q[part] @ k[part] / d**0.5 for k in key @ wk.T + bk])
            heads.append(scores.softmax(0) @ (value @ wv.T + bv)[:, part])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ attention.out_proj.weight.T + attention.out_proj.bias


def feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.linear2(layer.linear1(x).clamp(min=0))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_without_positions_equals_torchs(pre_norm: bool) -> None:
    ours = randomised(TransformerEncoderLayer(C, M, FFN, 0.0, pre_norm))
    theirs = nn.TransformerEncoderLayer(C, M, FFN, 0.0, batch_first=True, norm_first=pre_norm).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, C)
    torch.testing.assert_close(ours(x, torch.zeros(1, 5, C)), theirs(x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_without_positions_equals_torchs(pre_norm: bool) -> None:
    ours = randomised(TransformerDecoderLayer(C, M, FFN, 0.0, pre_norm))
    theirs = nn.TransformerDecoderLayer(C, M, FFN, 0.0, batch_first=True, norm_first=pre_norm).eval()
    theirs.load_state_dict(ours.state_dict())
    x, memory = torch.randn(2, 4, C), torch.randn(2, 7, C)
    actual = ours(x, torch.zeros(1, 4, C), memory, torch.zeros(1, 7, C))
    torch.testing.assert_close(actual, theirs(x, memory))


def test_positions_are_added_to_queries_and_keys_alone() -> None:
    layer = randomised(TransformerDecoderLayer(C, M, FFN))
    x, query_pos, memory, pos = (torch.randn(1, n, C) for n in (4, 4, 6, 6))
    a, b, m, p = x[0], query_pos[0], memory[0], pos[0]
    a = layer.norm1(a + attend_in_loops(layer.self_attn, a + b, a + b, a))
    a = layer.norm2(a + attend_in_loops(layer.multihead_attn, a + b, m + p, m))
    a = layer.norm3(a + feed_forward(layer, a))
    torch.testing.assert_close(layer(x, query_pos, memory, pos)[0], a)


def test_pre_norm_layers_of_an_encoder_with_positions() -> None:
    encoder = randomised(
        TransformerEncoder(2, embed_dim=C, num_heads=M, dim_feedforward=FFN, dropout=0.0, pre_norm=True)
    )
    x, pos = torch.randn(2, 5, C), torch.randn(1, 5, C)
    for image, actual in zip(x, encoder(x, pos), strict=True):
        for layer in encoder.layers:
            y = layer.norm1(image)
            image = image + attend_in_loops(layer.self_attn, y + pos[0], y + pos[0], y)
            image = image + feed_forward(layer, layer.norm2(image))
        torch.testing.assert_close(actual, encoder.norm(image))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_without_layers_only_normalises_what_pre_norm_left(pre_norm: bool) -> None:
    encoder = TransformerEncoder(0, embed_dim=C, num_heads=M, dim_feedforward=FFN, pre_norm=pre_norm)
    assert len(list(encoder.parameters())) == (2 if pre_norm else 0)
    x = torch.randn(2, 5, C)
    expected = nn.functional.layer_norm(x, [C]) if pre_norm else x
    torch.testing.assert_close(encoder(x, torch.randn(1, 5, C)), expected)


def test_the_decoder_gives_every_layers_queries_normalised_but_hands_them_on_as_they_are() -> None:
    decoder = randomised(TransformerDecoder(3, embed_dim=C, num_heads=M, dim_feedforward=FFN, pre_norm=True))
    x, query_pos, memory, pos = (torch.randn(2, n, C) for n in (4, 4, 6, 6))
    outputs = decoder(x, query_pos, memory, pos)
    assert len(outputs) == 3
    for layer, output in zip(decoder.layers, outputs, strict=True):
        x = layer(x, query_pos, memory, pos)
        torch.testing.assert_close(output, decoder.norm(x))


def test_dropout_is_for_training() -> None:
    encoder = TransformerEncoder(1, embed_dim=C, num_heads=M, dim_feedforward=FFN, dropout=0.5)
    x, pos = torch.randn(2, 5, C), torch.randn(1, 5, C)
    assert not torch.equal(encoder(x, pos), encoder(x, pos))
    assert torch.equal(encoder.eval()(x, pos), encoder(x, pos))


def test_channels_that_do_not_divide_by_the_heads() -> None:
    with pytest.raises(ValueError, match=r"12 channels .* do not divide by 5 heads \(MODEL.MASK_FORMER.NHEADS\)"):
        TransformerEncoder(1, embed_dim=C, num_heads=5, dim_feedforward=FFN)
