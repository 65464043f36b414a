"""The official layers against our own, which have the same parameters, batches first, and masks that say yes."""

import pytest
import torch
from torch import Tensor

from mask2former.modeling import official_layers as official
from mask2former.modeling.position_encoding import PositionEmbeddingSine
from mask2former.modeling.transformer_decoder import layers
from mask2former.modeling.transformer_decoder.scales import Scale

IMAGES, QUERIES, PIXELS, CHANNELS, HEADS = 2, 5, 12, 16, 4


def random(length: int) -> Tensor:
    return torch.randn(IMAGES, length, CHANNELS)


def sequence_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_self_attention_and_feed_forward_network(pre_norm: bool) -> None:
    x, query_pos = random(QUERIES), random(QUERIES)
    own = layers.SelfAttentionLayer(CHANNELS, HEADS, pre_norm=pre_norm)
    layer = official.SelfAttentionLayer(d_model=CHANNELS, nhead=HEADS, normalize_before=pre_norm)
    layer.load_state_dict(own.state_dict())
    found = layer(sequence_first(x), tgt_mask=None, tgt_key_padding_mask=None, query_pos=sequence_first(query_pos))
    torch.testing.assert_close(sequence_first(found), own(x, query_pos))

    own_ffn = layers.FFNLayer(CHANNELS, 32, pre_norm=pre_norm)
    ffn = official.FFNLayer(d_model=CHANNELS, dim_feedforward=32, normalize_before=pre_norm)
    ffn.load_state_dict(own_ffn.state_dict())
    torch.testing.assert_close(sequence_first(ffn(sequence_first(x))), own_ffn(x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_masked_attention(pre_norm: bool) -> None:
    x, query_pos, memory, pos = random(QUERIES), random(QUERIES), random(PIXELS), random(PIXELS)
    attend = torch.rand(IMAGES, QUERIES, PIXELS) > 0.5
    attend[..., 0] = True
    own = layers.MaskedAttentionLayer(CHANNELS, HEADS, pre_norm=pre_norm)
    layer = official.CrossAttentionLayer(d_model=CHANNELS, nhead=HEADS, normalize_before=pre_norm)
    layer.load_state_dict(own.state_dict())
    blocked = (~attend)[:, None].repeat(1, HEADS, 1, 1).flatten(0, 1)
    found = layer(
        *map(sequence_first, (x, memory)),
        memory_mask=blocked,
        memory_key_padding_mask=None,
        pos=sequence_first(pos),
        query_pos=sequence_first(query_pos),
    )
    expected = own(x, query_pos, Scale(memory, memory + pos, memory, [(3, 4)]), attend)
    torch.testing.assert_close(sequence_first(found), expected)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation is 'swish', expected one of relu, gelu, glu"):
        official.FFNLayer(8, activation="swish")


def test_position_encoding() -> None:
    encode = official.PositionEmbeddingSine(4, normalize=True)
    expected = PositionEmbeddingSine(4)(3, 5)
    torch.testing.assert_close(encode(torch.randn(2, 7, 3, 5)), expected.expand(2, -1, -1, -1))
    # Padding counts for nothing.
    padding = torch.ones(1, 4, 6, dtype=torch.bool)
    padding[:, :3, :5] = False
    torch.testing.assert_close(encode(torch.randn(1, 7, 4, 6), padding)[..., :3, :5], expected)


def test_position_encoding_in_pixels() -> None:
    encoded = official.PositionEmbeddingSine(2)(torch.zeros(1, 1, 2, 3))
    torch.testing.assert_close(encoded[0, 0, :, 0], torch.tensor([1.0, 2.0]).sin())
    torch.testing.assert_close(encoded[0, 3, 0], torch.tensor([1.0, 2.0, 3.0]).cos())
    with pytest.raises(ValueError, match=r"scale is 1\.0, which counts only with normalize=True"):
        official.PositionEmbeddingSine(2, scale=1.0)
