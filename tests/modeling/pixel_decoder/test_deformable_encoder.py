"""The deformable Transformer encoder against the formulas of Deformable DETR, one sample at a time."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.pixel_decoder.deformable_encoder import (
    MSDeformAttnTransformerEncoder,
    MSDeformAttnTransformerEncoderLayer,
    pixel_centers,
)
from mask2former.ops import MSDeformAttn

SHAPES = [(1, 2), (2, 3)]


def randomise(module: nn.Module) -> None:
    """Random parameters, with which offsets of some pixels and uneven attention occur."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.4 if parameter.dim() > 1 else 0.2))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)


def bilinear(values: Tensor, x: float, y: float) -> Tensor:
    """Values (H, W, D) at a position in pixels whose centres are at integers; 0 outside."""
    height, width, channels = values.shape
    result = torch.zeros(channels)
    for column, row in itertools.product((math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)):
        if 0 <= column < width and 0 <= row < height:
            result += (1 - abs(x - column)) * (1 - abs(y - row)) * values[row, column]
    return result


def naive_attention(module: MSDeformAttn, query: Tensor, value: Tensor, centers: Tensor) -> Tensor:
    """Equation 3 of Deformable DETR for queries and values (S, C)."""
    heads, points, levels = module.num_heads, module.num_points, len(SHAPES)
    values = module.value_proj(value).unflatten(-1, (heads, -1))  # (S, M, D)
    maps = [
        level.unflatten(0, shape) for level, shape in zip(values.split([h * w for h, w in SHAPES]), SHAPES, strict=True)
    ]
    output = torch.zeros(len(query), heads, values.shape[-1])
    for index, token in enumerate(query):
        offsets = module.sampling_offsets(token).view(heads, levels, points, 2)
        weights = module.attention_weights(token).view(heads, levels * points).softmax(-1).view(heads, levels, points)
        for head, level, point in itertools.product(range(heads), range(levels), range(points)):
            height, width = SHAPES[level]
            x = centers[index, 0].item() * width + offsets[head, level, point, 0].item() - 0.5
            y = centers[index, 1].item() * height + offsets[head, level, point, 1].item() - 0.5
            output[index, head] += weights[head, level, point] * bilinear(maps[level][:, :, head], x, y)
    return module.output_proj(output.flatten(1))


def naive_layer(layer: MSDeformAttnTransformerEncoderLayer, x: Tensor, pos: Tensor, centers: Tensor) -> Tensor:
    x = layer.norm1(x + naive_attention(layer.self_attn, x + pos, x, centers))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


def naive_centers() -> Tensor:
    """Of all pixels, row by row and level by level, as (x, y) in 0..1."""
    return torch.tensor(
        [
            [(x + 0.5) / width, (y + 0.5) / height]
            for height, width in SHAPES
            for y in range(height)
            for x in range(width)
        ]
    )


def test_pixel_centers_equal_a_loop() -> None:
    torch.testing.assert_close(pixel_centers(SHAPES), naive_centers())


@pytest.mark.parametrize(("heads", "points"), [(2, 2), (1, 3), (4, 1)])
def test_layer_equals_the_formulas(heads: int, points: int) -> None:
    layer = MSDeformAttnTransformerEncoderLayer(
        embed_dim=8, dim_feedforward=12, num_levels=2, num_heads=heads, num_points=points, dropout=0.0
    )
    randomise(layer)
    x, pos = torch.randn(2, 8, 8), torch.randn(1, 8, 8)
    with torch.no_grad():
        actual = layer(x, pos, pixel_centers(SHAPES)[None, :, None], SHAPES)
        expected = torch.stack([naive_layer(layer, image, pos[0], naive_centers()) for image in x])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_encoder_is_its_layers_on_the_levels_in_a_row() -> None:
    encoder = MSDeformAttnTransformerEncoder(
        embed_dim=8, dim_feedforward=12, num_levels=2, num_heads=2, num_points=2, num_layers=2
    )
    randomise(encoder)
    features = [torch.randn(2, 8, *shape) for shape in SHAPES]
    positions = [torch.randn(1, 8, *shape) for shape in SHAPES]
    with torch.no_grad():
        refined = encoder(features, positions)
        for image in range(2):
            tokens, pos = [], []
            for level, (height, width) in enumerate(SHAPES):
                for y, x in itertools.product(range(height), range(width)):
                    tokens.append(features[level][image, :, y, x])
                    pos.append(positions[level][0, :, y, x] + encoder.level_embed[level])
            expected = torch.stack(tokens)
            for layer in encoder.encoder.layers:
                expected = naive_layer(layer, expected, torch.stack(pos), naive_centers())
            actual = torch.cat([level[image].flatten(1).T for level in refined])
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert [tuple(level.shape) for level in refined] == [(2, 8, *shape) for shape in SHAPES]


def test_dropout_is_for_training() -> None:
    encoder = MSDeformAttnTransformerEncoder(
        embed_dim=8, dim_feedforward=12, num_levels=2, num_heads=2, num_points=2, num_layers=1, dropout=0.5
    )
    features = [torch.randn(1, 8, *shape) for shape in SHAPES]
    first, second = (encoder.train()(features, features)[0] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (encoder.eval()(features, features)[0] for _ in range(2))
    assert torch.equal(first, second)
