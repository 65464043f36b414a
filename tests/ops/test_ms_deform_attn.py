"""The reference of multi-scale deformable attention against loops, and its gradients."""

import math

import pytest
import torch
from torch import Tensor

from mask2former.ops import MSDeformAttn, ms_deform_attn, ms_deform_attn_reference

SHAPES = [(3, 4), (2, 2), (1, 5)]


def _inputs(dtype: torch.dtype = torch.float32, queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    pixels = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, pixels, 2, 3, dtype=dtype)
    locations = (
        torch.rand(2, queries, 2, len(SHAPES), 4, 2, dtype=torch.promote_types(dtype, torch.float32)) * 1.4 - 0.2
    )
    weights = torch.randn(2, queries, 2, len(SHAPES) * 4, dtype=locations.dtype).softmax(-1)
    return value, locations, weights.view(2, queries, 2, len(SHAPES), 4)


def _naive(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 with loops, in float64."""
    value, locations, weights = value.double(), locations.double(), weights.double()
    n, q, m, levels, p, _ = locations.shape
    output = torch.zeros(n, q, m, value.shape[-1], dtype=torch.float64)
    starts = [sum(h * w for h, w in SHAPES[:i]) for i in range(levels)]
    for index in torch.cartesian_prod(*map(torch.arange, (n, q, m, levels, p))).tolist():
        image, query, head, level, _ = index
        height, width = SHAPES[level]
        x, y = (locations[tuple(index)] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    pixel = value[image, starts[level] + row * width + column, head]
                    output[image, query, head] += weights[tuple(index)] * share * pixel
    return output.flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_equals_loops(dtype: torch.dtype) -> None:
    value, locations, weights = _inputs(dtype)
    output = ms_deform_attn_reference(value, SHAPES, locations, weights)
    expected = _naive(value, locations, weights)
    assert output.dtype == dtype
    # Sums are in float32, so all that half precision may lose is the rounding of the result.
    resolution = torch.finfo(dtype).eps
    assert ((output.double() - expected).abs() <= resolution * expected.abs() + 2e-6).all()


def test_gradients() -> None:
    value, locations, weights = (x.requires_grad_() for x in _inputs(torch.float64, queries=2))
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn_reference(v, SHAPES, x, w), (value, locations, weights)
    )


def test_wrong_shapes_are_named() -> None:
    value, locations, weights = _inputs()
    with pytest.raises(ValueError, match="hold 12 pixels, but value has 21"):
        ms_deform_attn(value, SHAPES[:1], locations, weights)
    with pytest.raises(ValueError, match="disagree"):
        ms_deform_attn(value, SHAPES, locations[:, :, :1], weights)
    with pytest.raises(ValueError, match=r"expects value \(N, S, M, D\)"):
        ms_deform_attn(value[0], SHAPES, locations, weights)
    with pytest.raises(ValueError, match="10 channels do not divide by 4 heads"):
        MSDeformAttn(embed_dim=10, num_heads=4)


def test_module_starts_with_points_on_rays() -> None:
    module = MSDeformAttn(embed_dim=16, num_levels=2, num_heads=4, num_points=3)
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    assert torch.allclose(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 1], torch.tensor([[0, 1.0], [0, 2], [0, 3]]), atol=1e-6)
