"""Predictions of several views, merged query by query."""

import itertools

import pytest
import torch
from torch import Tensor

from mask2former.modeling.postprocessing import MaskGeometry, QueryPrediction
from mask2former.modeling.query_merging import QueryMerger

GEOMETRY = MaskGeometry((32, 48), (32, 48), (32, 48))


def _blobs(*corners: tuple[int, int], side: int = 3) -> Tensor:
    """Mask logits (Q, 8, 12) of squares with these upper left corners, of uneven height."""
    masks = torch.rand(len(corners), 8, 12) - 5
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + side, left : left + side] += 8
    return masks


def _merge(*views: QueryPrediction, **options: float) -> QueryPrediction:
    merger = QueryMerger(**options)
    for view in views:
        merger.add(view)
    return merger.result()


def test_one_view_is_as_it_was() -> None:
    view = QueryPrediction(torch.randn(4, 3), torch.randn(4, 8, 12), GEOMETRY)
    merged = _merge(view)
    assert torch.equal(merged.class_logits, view.class_logits)
    assert torch.equal(merged.mask_logits, view.mask_logits)
    assert merged.geometry == view.geometry


def test_views_are_left_alone() -> None:
    views = [QueryPrediction(torch.randn(4, 3), torch.randn(4, 8, 12), GEOMETRY) for _ in range(2)]
    copies = [(view.class_logits.clone(), view.mask_logits.clone()) for view in views]
    _merge(*views, least_iou=0.0)
    for view, (classes, masks) in zip(views, copies, strict=True):
        assert torch.equal(view.class_logits, classes)
        assert torch.equal(view.mask_logits, masks)


def test_averages_are_those_of_the_equation() -> None:
    """Three objects; the second view has the first two in another order and a fourth, the third sees one alone."""
    places = [(0, 0), (4, 4), (0, 8), (5, 9)]
    seen = [[0, 1, 2], [1, 0, 3], [1]]
    views = [
        QueryPrediction(torch.randn(len(order), 4), _blobs(*(places[i] for i in order)), GEOMETRY) for order in seen
    ]
    merged = _merge(*views)
    assert merged.class_logits.shape == (4, 4)
    for segment in range(4):
        own = [
            (view.class_logits.softmax(-1)[order.index(segment)], view.mask_logits[order.index(segment)])
            for view, order in zip(views, seen, strict=True)
            if segment in order
        ]
        weight = min(1, 2 * len(own) / (3 + 1))
        expected = weight * torch.stack([classes for classes, _ in own]).mean(0)
        expected[-1] += 1 - weight
        torch.testing.assert_close(merged.class_logits[segment].softmax(-1), expected)
        torch.testing.assert_close(merged.mask_logits[segment], torch.stack([mask for _, mask in own]).mean(0))


def test_assignment_is_the_best_of_all() -> None:
    """Queries that overlap each other, so that the choice matters."""
    first = QueryPrediction(torch.randn(4, 3) * 2, _blobs((0, 0), (0, 1), (1, 0), (1, 1), side=6), GEOMETRY)
    second = QueryPrediction(torch.randn(4, 3) * 2, _blobs((1, 1), (1, 2), (0, 1), (0, 0), side=6), GEOMETRY)
    inside, others = first.mask_logits > 0, second.mask_logits > 0
    p, q = first.class_logits.softmax(-1), second.class_logits.softmax(-1)

    def benefit(a: int, b: int) -> float:
        iou = (inside[a] & others[b]).sum() / (inside[a] | others[b]).sum()
        assert iou > 0.3
        return float(iou * (p[a] * q[b]).sum())

    best = max(itertools.permutations(range(4)), key=lambda order: sum(benefit(a, b) for a, b in enumerate(order)))
    assert best != tuple(range(4))
    merged = _merge(first, second, least_iou=0.3)
    torch.testing.assert_close(merged.class_logits.softmax(-1), (p + q[list(best)]) / 2)
    torch.testing.assert_close(merged.mask_logits, (first.mask_logits + second.mask_logits[list(best)]) / 2)


def test_of_queries_with_the_same_mask_the_class_decides() -> None:
    """As of an object and its less sure double; the masks alone say the opposite."""
    masks = _blobs((0, 0), (0, 1), side=6)
    first = QueryPrediction(torch.tensor([[3.0, 0, 0], [0, 0, 3]]), masks, GEOMETRY)
    second = QueryPrediction(torch.tensor([[0.0, 0, 3], [3, 0, 0]]), masks, GEOMETRY)
    merged = _merge(first, second)
    torch.testing.assert_close(merged.class_logits.softmax(-1), first.class_logits.softmax(-1))
    torch.testing.assert_close(merged.mask_logits[0], merged.mask_logits[1])


def test_what_is_left_over() -> None:
    """Too little overlap is none; then a query must say "object" and have a mask to become a segment."""
    first = QueryPrediction(torch.tensor([[3.0, 0, 0]]), _blobs((0, 0)), GEOMETRY)
    unsure = torch.tensor([[0.0, 0, 9], [3, 0, 0], [3, 0, 0]])
    masks = torch.cat([_blobs((4, 4)), torch.full((1, 8, 12), -1.0), _blobs((0, 1))])  # an IoU of 6 to 12 cells
    merged = _merge(first, QueryPrediction(unsure, masks, GEOMETRY), least_iou=0.51)
    assert merged.class_logits.shape == (2, 3)
    torch.testing.assert_close(merged.mask_logits, torch.stack([first.mask_logits[0], masks[2]]))
    assert len(_merge(first, QueryPrediction(unsure, masks, GEOMETRY), least_iou=0.49).class_logits) == 1
    assert (
        len(_merge(first, QueryPrediction(unsure, masks, GEOMETRY), least_iou=0.51, least_score=1e-5).mask_logits) == 3
    )


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("size", "padded", "stride"), [((50, 90), (64, 96), 4), ((33, 61), (64, 64), 8), ((150, 300), (160, 320), 4)]
)
def test_masks_of_another_size_lie_where_they_did(
    size: tuple[int, int], padded: tuple[int, int], stride: int, flipped: bool
) -> None:
    """Logits that are linear in the place in the image, which interpolation does not change."""

    def plane(image_size: tuple[int, int], padded_size: tuple[int, int], stride: int, flipped: bool = False) -> Tensor:
        rows, columns = (
            (torch.arange(padded // stride) + 0.5) * stride / length
            for length, padded in zip(image_size, padded_size, strict=True)
        )
        return 3 * rows[:, None] + 2 * (1 - columns if flipped else columns) + 1

    logits = torch.tensor([[5.0, 0.0]])
    first = QueryPrediction(logits, plane((70, 126), (96, 128), 4)[None], MaskGeometry((96, 128), (70, 126), (70, 126)))
    masks = plane(size, padded, stride, flipped)
    merger = QueryMerger()
    merger.add(first)
    merger.add(QueryPrediction(logits, masks[None], MaskGeometry(padded, size, (70, 126))), flipped=flipped)
    merged = merger.result().mask_logits[0]
    # Within the image, and so far from its edges that all four neighbours exist in both.
    margin = stride * 70 / size[0] / 4
    rows, columns = slice(int(margin) + 1, int(17 - margin)), slice(int(margin) + 1, int(31 - margin))
    assert merged[rows, columns].numel() > 100
    torch.testing.assert_close(merged[rows, columns], first.mask_logits[0][rows, columns])


def test_mirror_image_is_turned_back() -> None:
    first = QueryPrediction(torch.randn(2, 3), _blobs((0, 0), (3, 7)), GEOMETRY)
    second = QueryPrediction(first.class_logits, first.mask_logits.flip(-1), GEOMETRY)
    merger = QueryMerger()
    merger.add(first)
    merger.add(second, flipped=True)
    torch.testing.assert_close(merger.result().mask_logits, first.mask_logits, rtol=1e-4, atol=1e-4)
