"""Masks that are not computed yet: whole tensors to those who ask for one, and what is selected of them otherwise."""

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.point_sampling import sample_logits
from mask2former.modeling.query_masks import (
    QueryMasks,
    group_layers,
    mask_logits,
    masks_by_image,
    predict_masks,
    select_masks,
)


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(2, 5, 4, requires_grad=True)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2, 4, 6, 7, requires_grad=True)


def naive_masks(embeddings: Tensor, features: Tensor) -> Tensor:
    masks = [
        [sum(e * f for e, f in zip(embedding, image, strict=True)) for embedding in of_image]
        for of_image, image in zip(embeddings, features, strict=True)
    ]
    return torch.stack([torch.stack(of_image) for of_image in masks])


@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients(embeddings: Tensor, features: Tensor, training: bool) -> None:
    masks, expected = predict_masks(embeddings, features, training=training), naive_masks(embeddings, features)
    assert isinstance(masks, QueryMasks) == training
    torch.testing.assert_close(masks + 0, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), (embeddings, features)) for x in (masks, expected)]
    torch.testing.assert_close(*gradients)


def test_what_is_known_without_computing(embeddings: Tensor, features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    full = QueryMasks.full
    monkeypatch.delattr(QueryMasks, "full")
    masks = QueryMasks(embeddings.bfloat16(), features.bfloat16())
    assert masks.shape == masks.size() == (2, 5, 6, 7)
    assert (len(masks), masks.dim(), masks.size(-1), masks.dtype, masks.device.type) == (2, 4, 7, torch.bfloat16, "cpu")
    assert [mask.shape for mask in masks] == [(5, 6, 7)] * 2
    monkeypatch.setattr(QueryMasks, "full", full, raising=False)
    assert type(masks + 0) is Tensor


def test_it_is_a_tensor_to_everyone(embeddings: Tensor, features: Tensor) -> None:
    masks, expected = QueryMasks(embeddings, features), naive_masks(embeddings, features)
    for ours, theirs in (
        (masks[1], expected[1]),
        (masks[-1][2:], expected[-1, 2:]),
        (masks[True], expected[None]),
        (masks[:, ::2, 0], expected[:, ::2, 0]),
        (masks[masks > 0], expected[expected > 0]),
        (torch.stack([masks, masks]), torch.stack([expected, expected])),
        (2 * masks - masks, expected),
        (masks.float().flatten(1), expected.flatten(1)),
        (F.interpolate(input=masks, scale_factor=2), F.interpolate(expected, scale_factor=2)),
        (torch.from_numpy(masks.detach().numpy()), expected.detach()),
    ):
        assert type(ours.float()) is Tensor
        torch.testing.assert_close(ours.float(), theirs)
    assert masks.requires_grad
    assert "QueryMasks" not in repr(masks)
    torch.testing.assert_close(copy.deepcopy(masks.detach()), expected.detach())
    buffer = io.BytesIO()
    torch.save(masks.detach(), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer), expected.detach())


def test_another_type_than_that_of_the_per_pixel_embedding(embeddings: Tensor, features: Tensor) -> None:
    """As in float16 autocast, whose pixel decoder computes in float32."""
    masks = QueryMasks(embeddings.bfloat16(), features)
    assert masks.full().dtype == masks.dtype == torch.bfloat16
    assert torch.equal(masks.full(), QueryMasks(embeddings.bfloat16(), features.bfloat16()).full())


@pytest.mark.parametrize("groups", [[slice(0, 2)], [slice(0, 1), slice(1, 2)]])
@pytest.mark.parametrize("lazy", [True, False])
def test_selected_masks(lazy: bool, groups: list[slice], features: Tensor) -> None:
    embeddings = [torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)]
    # Those of the second layer have the numbers from 5.
    queries = [
        [torch.tensor([4, 0, 2]), torch.tensor([1])],
        [torch.tensor([], dtype=torch.int64), torch.tensor([7, 7])],
    ]
    masks = [QueryMasks(x, features) for x in embeddings]
    given = masks if lazy else [x.full() for x in masks]
    whole = [naive_masks(x, features) for x in embeddings]
    rows = [whole[0][0, 4], whole[0][0, 0], whole[0][0, 2], whole[0][1, 1], whole[1][1, 2], whole[1][1, 2]]
    expected = [torch.stack(rows)] if len(groups) == 1 else [torch.stack(rows[:4]), torch.stack(rows[4:])]
    selected = select_masks(given, queries, groups)
    torch.testing.assert_close(selected, expected)
    gradients = [
        torch.autograd.grad(sum((x**3).sum() for x in result), (*embeddings, features))
        for result in (selected, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_masks_of_all_layers_by_image(features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [QueryMasks(torch.randn(2, 5, 4), features) for _ in range(3)]
    expected = torch.stack([masks.full() for masks in layers], dim=1)
    for of_image, wanted in zip(masks_by_image([masks.full() for masks in layers]), expected, strict=True):
        assert torch.equal(torch.stack(list(of_image)), wanted)
    of_images = masks_by_image(layers)
    for of_image, wanted in zip(of_images, expected, strict=True):
        torch.testing.assert_close(of_image + 0, wanted)
        torch.testing.assert_close(of_image[1:] + 0, wanted[1:])
        torch.testing.assert_close(of_image[-1] + 0, wanted[-1])
    monkeypatch.delattr(QueryMasks, "full")
    assert [masks.shape for masks in (of_images[0], of_images[0][1:], of_images[0][1])] == [
        (3, 5, 6, 7),
        (2, 5, 6, 7),
        (5, 6, 7),
    ]


def test_layers_are_compared_at_once_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    one_by_one = [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert group_layers(3, "points", gpu) == [slice(0, 3)]
    assert group_layers(3, "points", cpu) == group_layers(3, "masks", gpu) == one_by_one


def test_broken_queries_do_not_reach_the_gradient_of_others(features: Tensor) -> None:
    """Also where images have different numbers of matched queries, so that a product for all has rows to spare."""
    embeddings = torch.randn(2, 5, 4)
    embeddings[:, 0] = torch.nan
    queries = [[torch.tensor([4, 1]), torch.tensor([], dtype=torch.int64)]]
    (selected,) = select_masks([QueryMasks(embeddings, features)], queries, [slice(0, 1)])
    selected.sum().backward()
    assert features.grad.isfinite().all()


def test_nothing_selected_stays_in_the_graph(embeddings: Tensor, features: Tensor) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    (selected,) = select_masks([QueryMasks(embeddings, features)], [[none, none]], [slice(0, 1)])
    assert selected.shape == (0, 6, 7)
    selected.sum().backward()
    assert not embeddings.grad.any()
    assert not features.grad.any()


def test_a_look_without_gradients_takes_none_from_the_next(embeddings: Tensor, features: Tensor) -> None:
    masks = QueryMasks(embeddings, features)
    with torch.no_grad():
        assert not masks.sigmoid().requires_grad
    assert masks.sigmoid().requires_grad


@pytest.mark.parametrize("count", [20, 30, 50])  # of 42 pixels: half of them, or more, or more than there are
def test_samples_at_common_points(embeddings: Tensor, features: Tensor, count: int) -> None:
    masks, points = QueryMasks(embeddings, features[1]), torch.rand(2, count, 2)
    samples = sample_logits(masks, points)
    expected = F.grid_sample(masks.full(), (2 * points - 1)[:, None], align_corners=False)[:, :, 0]
    torch.testing.assert_close(samples, expected)
    half = QueryMasks(embeddings.bfloat16(), features[1])
    assert sample_logits(half, points).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_one_image_as_in_a_batch(has_bias: bool, dtype: torch.dtype) -> None:
    embeddings = torch.randn(2, 5, 16 + has_bias, dtype=dtype)
    pixels = torch.randn(2, 30, 16, dtype=dtype).transpose(1, 2)
    together = mask_logits(embeddings, pixels)
    assert together.shape == (2, 5, 30)
    for image in range(2):
        alone = mask_logits(embeddings[image : image + 1], pixels[image : image + 1])
        torch.testing.assert_close(alone, together[image : image + 1])
