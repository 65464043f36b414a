"""The sine position encoding against loops over pixels and channels."""

import math

import pytest
import torch

from mask2former.modeling.position_encoding import PositionEmbeddingSine


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 5, 8), (1, 4, 6), (7, 1, 2)])
def test_encoding_equals_loops(height: int, width: int, channels: int) -> None:
    encoding = PositionEmbeddingSine(channels)(height, width)
    expected = torch.zeros(1, 2 * channels, height, width)
    for row in range(height):
        for column in range(width):
            for half, (index, length) in enumerate([(row, height), (column, width)]):
                position = 2 * math.pi * (index + 1) / (length + 1e-6)
                for channel in range(channels):
                    angle = position / 10000 ** (2 * (channel // 2) / channels)
                    value = math.cos(angle) if channel % 2 else math.sin(angle)
                    expected[0, half * channels + channel, row, column] = value
    torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)


def test_odd_channels_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"has 9 channels a coordinate.*HIDDEN_DIM .*CONVS_DIM.* as a multiple of 4"):
        PositionEmbeddingSine(9)
