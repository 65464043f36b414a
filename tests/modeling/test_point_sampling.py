"""Values at points against grid_sample and loops; where importance sampling puts its points."""

import math

import pytest
import torch
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness
from torch.nn import functional as F

from mask2former.modeling import point_sampling
from mask2former.modeling.point_sampling import (
    importance_sampling_sizes,
    sample_binary_masks,
    sample_logits,
    sample_nearest,
    uncertain_points,
)
from mask2former.modeling.query_masks import QueryMasks
from mask2former.structures import SegmentMasks


@pytest.fixture(params=["native", "PyTorch"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same results: the native operators for CPUs, and what GPUs get."""
    if request.param == "PyTorch":
        monkeypatch.setattr(point_sampling, "has_native_points", lambda *_, **__: False)


def test_logits_equal_a_loop_over_points() -> None:
    logits, points = torch.randn(2, 5, 7), torch.rand(2, 20, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    expected = torch.zeros(2, 20)
    for mask in range(2):
        for index, (px, py) in enumerate(points[mask].tolist()):
            x, y = px * 7 - 0.5, py * 5 - 0.5
            for column in (math.floor(x), math.floor(x) + 1):
                for row in (math.floor(y), math.floor(y) + 1):
                    if 0 <= column < 7 and 0 <= row < 5:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        expected[mask, index] += share * logits[mask, row, column]
    torch.testing.assert_close(sample_logits(logits[:, None], points)[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(2, 3), (5, 7), (9, 8)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_that_are_not_computed_have_the_samples_of_those_that_are(
    size: tuple[int, int], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    features = torch.randn(1, 6, *size).to(dtype, memory_format=memory_format)[0].requires_grad_()
    masks = QueryMasks(torch.randn(3, 4, 6).to(dtype).requires_grad_(), features)
    points = torch.rand(3, 30, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    samples, expected = sample_logits(masks, points), sample_logits(masks.full(), points)
    assert samples.dtype == torch.float32
    precision = {"atol": 0.1, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(samples, expected, **precision)
    weights, inputs = torch.randn_like(samples), (masks.embeddings, features)
    gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (samples, expected)]
    torch.testing.assert_close(*gradients, **precision)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_for_matching(layers: int, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    features = torch.randn(1, 32, 9, 8).to(dtype, memory_format=memory_format)[0]
    masks, points = QueryMasks(torch.randn(layers, 4, 32).to(dtype), features), torch.rand(layers, 60, 2)
    samples, expected = sample_logits(masks, points), sample_logits(masks.full(), points)
    assert samples.dtype == torch.float32
    precision = 0.2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(samples, expected, atol=precision, rtol=precision / 4)


@torch.no_grad()
def test_other_types() -> None:
    points, features = torch.rand(1, 60, 2), torch.randn(32, 9, 8)
    for of_features, of_embeddings in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        masks = QueryMasks(torch.randn(1, 4, 32).to(of_embeddings), features.to(of_features))
        expected = sample_logits(masks.full(), points)
        torch.testing.assert_close(sample_logits(masks, points), expected, atol=1e-5, rtol=1e-5)
    logits, candidates = torch.randn(3, 9, 8), torch.rand(3, 50, 2)
    expected = uncertain_points(logits, candidates, candidates[:, :5], 20)
    assert expected.shape == (3, 20, 2)
    assert uncertain_points(logits.double(), candidates, candidates[:, :5], 20).shape == (3, 20, 2)
    binary, rows, points = torch.rand(3, 7, 9) > 0.5, torch.arange(3), torch.rand(3, 30, 2)
    expected = sample_binary_masks(binary, rows, points)
    for dtype in (torch.float32, torch.int64):
        torch.testing.assert_close(sample_binary_masks(binary.to(dtype), rows, points), expected, atol=1e-5, rtol=0)


def test_layers_that_have_no_embedding_in_common() -> None:
    layers, points = [torch.randn(4, 5, 7), torch.randn(4, 5, 7)], torch.rand(2, 30, 2)
    expected = [sample_logits(masks[None], where[None])[0] for masks, where in zip(layers, points, strict=True)]
    assert torch.equal(sample_logits(layers, points), torch.stack(expected))
    assert torch.equal(sample_logits(torch.stack(layers), points), torch.stack(expected))


@pytest.mark.parametrize("layers", [1, 3])
def test_binary_samples_of_several_layers(layers: int) -> None:
    """At points of each layer that are the same for all masks, as in matching."""
    segments = SegmentMasks(torch.randint(0, 4, (7, 9)).to(torch.uint8), torch.tensor([3, 1, 2], dtype=torch.uint8))
    rows, points = torch.arange(3), torch.rand(layers, 1, 30, 2)
    expected = torch.stack([sample_binary_masks(segments.full(), rows, of_layer) for of_layer in points])
    assert torch.equal(sample_binary_masks(segments, rows, points), expected)
    assert torch.equal(sample_binary_masks(segments.full(), rows, points), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_binary_samples_equal_those_of_float_masks(shared: bool) -> None:
    masks, rows = torch.rand(3, 7, 9) > 0.5, torch.tensor([2, 0, 1, 2])
    points = torch.rand(1 if shared else 4, 30, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    grids = 2 * points.expand(4, -1, -1)[:, None] - 1
    expected = F.grid_sample(masks[rows][:, None].float(), grids, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(sample_binary_masks(masks, rows, points), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_samples_of_a_map_are_those_of_its_masks(shared: bool, dtype: torch.dtype) -> None:
    segments = SegmentMasks(torch.randint(0, 4, (7, 9)).to(dtype), torch.tensor([3, 1, 2], dtype=dtype))
    rows, points = torch.tensor([2, 0, 1, 2]), torch.rand(1 if shared else 4, 30, 2)
    points[0, :2] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = sample_binary_masks(segments.full(), rows, points)
    assert torch.equal(sample_binary_masks(segments, rows, points), expected)


def test_one_pixel_is_seen_from_the_pixel_around_it() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 1, 2] = True
    points = torch.tensor([[[2.5 / 4, 1.5 / 4], [3.0 / 4, 1.5 / 4], [3.5 / 4, 1.5 / 4]]])
    assert sample_binary_masks(masks, torch.tensor([0]), points).tolist() == [[1.0, 0.5, 0.0]]


def test_no_mask_gives_no_samples() -> None:
    none = torch.zeros(0, 4, 4, dtype=torch.bool)
    assert sample_binary_masks(none, torch.zeros(0, dtype=torch.int64), torch.rand(0, 5, 2)).shape == (0, 5)


def test_nearest_is_the_pixel_that_holds_the_point() -> None:
    mask = torch.rand(5, 7) > 0.5
    points = torch.rand(50, 2)
    points[:2] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = [bool(mask[min(int(y * 5), 4), min(int(x * 7), 6)]) for x, y in points.tolist()]
    assert sample_nearest(mask, points).tolist() == expected


def test_most_points_are_where_the_mask_is_undecided() -> None:
    logits = torch.full((2, 16, 16), 9.0)
    logits[0, :, 12:] = -9.0  # undecided near x = 0.75 only
    logits[1, 4:] = -9.0  # undecided near y = 0.25 only
    assert importance_sampling_sizes(200, 40.0, 0.75) == (8000, 50)
    points = uncertain_points(logits, torch.rand(2, 8000, 2), torch.rand(2, 50, 2), num_points=200)
    assert points.shape == (2, 200, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    distance = torch.stack([(points[0, :, 0] - 0.75).abs(), (points[1, :, 1] - 0.25).abs()])
    # The 150 chosen ones, but for one or two in the corners, where samples fade to the 0 outside; and of the uniform
    # rest the sixteenth that falls there by chance.
    near = (distance < 1 / 32).sum(1)
    assert ((near >= 147) & (near < 165)).all()


def test_without_importance_points_are_uniform() -> None:
    assert importance_sampling_sizes(4000, 3.0, 0.0) == (12000, 4000)
    points = uncertain_points(torch.randn(1, 8, 8), torch.rand(1, 12000, 2), torch.rand(1, 4000, 2), 4000)
    counts = torch.histc(points[..., 0], bins=8, min=0, max=1)
    assert (counts - 500).abs().max() < 5 * 500**0.5


def test_points_are_detectron2s() -> None:
    logits = torch.randn(3, 9, 7)
    torch.manual_seed(4)
    expected = get_uncertain_point_coords_with_randomness(logits[:, None], lambda x: -x.abs(), 50, 3.0, 0.75)
    torch.manual_seed(4)
    candidates, uniform = (torch.rand(3, size, 2) for size in importance_sampling_sizes(50, 3.0, 0.75))
    points = uncertain_points(logits, candidates, uniform, 50)
    for ours, theirs in zip(points.tolist(), expected.tolist(), strict=True):
        assert sorted(ours) == sorted(theirs)
