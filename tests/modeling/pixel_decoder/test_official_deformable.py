"""Deformable attention by the official release's arguments, against our own."""

import pytest
import torch

from mask2former import ops
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttnTransformerEncoder
from mask2former.modeling.pixel_decoder.official_deformable import (
    MSDeformAttn,
    MSDeformAttnFunction,
    MSDeformAttnTransformerEncoderOnly,
    ms_deform_attn_core_pytorch,
)

SHAPES = [(2, 3), (4, 5)]


def test_attention() -> None:
    own = ops.MSDeformAttn(16, 2, 4, 3)
    torch.nn.init.normal_(own.sampling_offsets.weight)
    torch.nn.init.normal_(own.attention_weights.weight)
    layer = MSDeformAttn(d_model=16, n_levels=2, n_heads=4, n_points=3)
    layer.load_state_dict(own.state_dict())
    query, value, points = torch.randn(2, 7, 16), torch.randn(2, 26, 16), torch.rand(2, 7, 2, 2)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 6])
    torch.testing.assert_close(layer(query, points, value, shapes, starts, None), own(query, points, value, SHAPES))
    with pytest.raises(ValueError, match=r"expected \(N, Q, L, 2\) or \(N, Q, L, 4\)"):
        layer(query, torch.rand(2, 7, 2, 3), value, shapes, starts)


def test_attention_in_boxes() -> None:
    """A box whose half is as many pixels as there are points moves a point as its offset in pixels does."""
    layer = MSDeformAttn(16, 2, 4, 3)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    query, value, points = torch.randn(2, 7, 16), torch.randn(2, 26, 16), torch.rand(2, 7, 2, 2)
    shapes = torch.tensor(SHAPES)
    boxes = torch.cat([points, (2 * 3 / shapes.flip(-1)).expand(2, 7, 2, 2)], dim=-1)
    torch.testing.assert_close(layer(query, boxes, value, shapes), layer(query, points, value, shapes))


def test_the_function() -> None:
    value, weights = torch.randn(2, 26, 4, 8), torch.rand(2, 7, 4, 2, 3)
    locations = torch.rand(2, 7, 4, 2, 3, 2, requires_grad=True)
    shapes = torch.tensor(SHAPES)
    expected = ops.ms_deform_attn_reference(value, SHAPES, locations, weights)
    found = MSDeformAttnFunction.apply(value, shapes, torch.tensor([0, 6]), locations, weights, 128)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ms_deform_attn_core_pytorch(value, shapes, locations, weights), expected)
    gradients = [torch.autograd.grad(each.square().sum(), locations)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_padding_has_no_value() -> None:
    layer = MSDeformAttn(16, 2, 4, 3)
    query, value, points = torch.randn(1, 7, 16), torch.randn(1, 26, 16), torch.rand(1, 7, 2, 2)
    shapes, padding = torch.tensor(SHAPES), torch.zeros(1, 26, dtype=torch.bool)
    padding[:, 6:] = True
    changed = value.clone()
    changed[:, 6:] += 1
    found = [layer(query, points, x, shapes, None, padding) for x in (value, changed)]
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], layer(query, points, value, shapes))


def test_encoder() -> None:
    sizes = {"dim_feedforward": 32, "dropout": 0.0}
    own = MSDeformAttnTransformerEncoder(embed_dim=16, num_levels=2, num_heads=4, num_points=3, num_layers=2, **sizes)
    encoder = MSDeformAttnTransformerEncoderOnly(
        d_model=16, nhead=4, num_encoder_layers=2, num_feature_levels=2, enc_n_points=3, **sizes
    )
    encoder.load_state_dict(own.state_dict())
    maps, positions = ([torch.randn(2, 16, *shape) for shape in SHAPES] for _ in range(2))
    tokens, shapes, starts = encoder(maps, positions)
    assert shapes.tolist() == [list(shape) for shape in SHAPES]
    assert starts.tolist() == [0, 6]
    expected = torch.cat([x.flatten(2).transpose(1, 2) for x in own(maps, positions)], dim=1)
    torch.testing.assert_close(tokens, expected)
    with pytest.raises(ValueError, match="activation is 'gelu', expected 'relu'"):
        MSDeformAttnTransformerEncoderOnly(activation="gelu")
