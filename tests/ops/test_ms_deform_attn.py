"""The reference of multi-scale deformable attention against loops, and its gradients."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mask2former.ops import MSDeformAttn, fused_ms_deform_attn, ms_deform_attn, ms_deform_attn_reference
from mask2former.ops.gathered_attention import ms_deform_attn_gathered

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


@pytest.mark.parametrize("function", [ms_deform_attn_reference, ms_deform_attn_gathered])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_equals_loops(dtype: torch.dtype, function: Callable[..., Tensor]) -> None:
    value, locations, weights = _inputs(dtype)
    output = function(value, SHAPES, locations, weights)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_locations_and_weights_may_be_in_half_precision_too(dtype: torch.dtype) -> None:
    value, locations, weights = (x.to(dtype) for x in _inputs(dtype))
    output = ms_deform_attn_reference(value, SHAPES, locations, weights)
    expected = _naive(value, locations, weights)  # of what the rounded numbers say, in float64
    assert output.dtype == dtype
    assert ((output.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 2e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_are_those_of_float64_rounded(dtype: torch.dtype) -> None:
    inputs = _inputs(dtype)
    direction = torch.randn(2, 5, 6, dtype=dtype)
    gradients = []
    for precision in (dtype, torch.float64):
        leaves = [x.to(torch.promote_types(x.dtype, precision)).detach().requires_grad_() for x in inputs]
        output = ms_deform_attn_reference(leaves[0], SHAPES, leaves[1], leaves[2])
        gradients.append(torch.autograd.grad(output, leaves, direction.to(output.dtype)))
    for ours, exact, leaf in zip(*gradients, inputs, strict=True):
        assert ours.dtype == leaf.dtype
        resolution = torch.finfo(leaf.dtype).eps
        assert ((ours.double() - exact).abs() <= resolution * exact.abs() + 2e-5).all()


def test_memory_order_does_not_matter() -> None:
    value, locations, weights = _inputs()
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    strided = (value.transpose(1, 2).contiguous().transpose(1, 2), locations.flip(-1).flip(-1), weights.mT.clone().mT)
    output = ms_deform_attn_reference(strided[0], SHAPES, *strided[1:])
    assert not strided[0].is_contiguous()
    assert output.is_contiguous()
    torch.testing.assert_close(output, expected)


def test_points_outside_are_worth_nothing() -> None:
    value, locations, weights = _inputs()
    assert not ms_deform_attn_reference(value, SHAPES, locations + 5, weights).any()


def test_fused_form_is_softmax_and_offsets_in_pixels() -> None:
    value, offsets, logits = _inputs(torch.float64)
    offsets, logits = 2 * offsets - 1, 3 * logits
    points = torch.rand(1, 5, 1, 2, dtype=torch.float64)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    locations = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        locations[..., level, :, 0] = points[:, :, :, None, 0] + offsets[..., level, :, 0] / width
        locations[..., level, :, 1] = points[:, :, :, None, 1] + offsets[..., level, :, 1] / height
    fused = fused_ms_deform_attn(value, SHAPES, points, offsets, logits)
    torch.testing.assert_close(fused, _naive(value, locations, weights))


def test_gradients_of_the_module() -> None:
    module = MSDeformAttn(embed_dim=4, num_levels=len(SHAPES), num_heads=2, num_points=2).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    query, value = torch.randn(1, 2, 4, dtype=torch.float64), torch.randn(1, 21, 4, dtype=torch.float64)
    points = torch.rand(1, 2, 1, 2, dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in (query, points, value))
    assert torch.autograd.gradcheck(lambda q, p, v: module(q, p, v, SHAPES), inputs)


def test_wrong_shapes_are_named() -> None:
    value, locations, weights = _inputs()
    with pytest.raises(ValueError, match="hold 12 pixels, but value has 21"):
        ms_deform_attn(value, SHAPES[:1], locations, weights)
    with pytest.raises(ValueError, match="disagree"):
        ms_deform_attn(value, SHAPES, locations[:, :, :1], weights)
    with pytest.raises(ValueError, match=r"expects value \(N, S, M, D\)"):
        ms_deform_attn(value[0], SHAPES, locations, weights)
    with pytest.raises(ValueError, match=r"weights or logits \(N, Q, M, L, P\), got shapes .* and \(2, 5, 2, 12\)"):
        ms_deform_attn(value, SHAPES, locations, weights.flatten(-2))
    with pytest.raises(ValueError, match="10 channels do not divide by 4 heads"):
        MSDeformAttn(embed_dim=10, num_heads=4)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("points", "told"),
    [
        (torch.rand(1, 5, 2), r"\(1, 5, 2\) torch.float32 on cpu"),
        (torch.rand(3, 5, 1, 2), r"\(3, 5, 1, 2\)"),
        (torch.rand(1, 1, 1, 2), r"\(1, 1, 1, 2\)"),  # would be broadcast
        (torch.rand(1, 5, 2, 2), r"\(1, 5, 2, 2\)"),
        (torch.rand(1, 5, 1, 1), r"\(1, 5, 1, 1\)"),  # likewise
        (torch.zeros(1, 5, 1, 2, dtype=torch.int64), "torch.int64"),
        (torch.rand(1, 5, 1, 2, device="meta"), "on meta"),
    ],
)
def test_wrong_reference_points_are_named(
    points: Tensor, told: str, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reference:
        monkeypatch.setattr(sys.modules[fused_ms_deform_attn.__module__], "has_native_kernel", lambda value: False)
    value, offsets, logits = _inputs()
    expected = r"expected \(1 or N, Q, 1 or L, 2\) with N = 2, Q = 5 and L = 3, floating point, on cpu"
    with pytest.raises(ValueError, match=f"reference_points are .*{told}.*, {expected}"):
        fused_ms_deform_attn(value, SHAPES, points, offsets, logits)
    for shape in ((1, 5, 1, 2), (2, 5, 3, 2)):
        fused_ms_deform_attn(value, SHAPES, torch.rand(shape), offsets, logits)


def test_module_starts_with_points_on_rays() -> None:
    module = MSDeformAttn(embed_dim=16, num_levels=2, num_heads=4, num_points=3)
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    assert torch.allclose(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 1], torch.tensor([[0, 1.0], [0, 2], [0, 3]]), atol=1e-6)
