"""Matches against a naive search on pixels, and cases counted by hand."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from mask2former.own_data.report.matching import class_qualities, match_segments
from mask2former.own_data.report.segments import Segments


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return mask


def segments(*entries: tuple[np.ndarray, int], crowds: tuple[int, ...] = ()) -> Segments:
    found = Segments()
    for i, (mask, class_id) in enumerate(entries):
        found.add(mask_util.encode(mask), class_id, crowd=i in crowds)
    return found


def naive_quality(true: list[tuple[np.ndarray, int]], predicted: list[tuple[np.ndarray, int]]) -> float:
    """For segments of which no two overlap, an IoU above a half is unique."""
    total = 0.0
    for mask, class_id in true:
        for other, other_class in predicted:
            iou = (mask & other).sum() / (mask | other).sum()
            if iou > 0.5 and class_id == other_class:
                total += iou
    return total / ((len(true) + len(predicted)) / 2)


@pytest.mark.parametrize("seed", range(10))
def test_quality_of_random_pictures(seed: int) -> None:
    random = np.random.default_rng(seed)

    def picture() -> list[tuple[np.ndarray, int]]:
        columns = [left for left in range(0, 60, 12) if random.random() < 0.8]
        return [
            (rectangle(random.integers(4), left + random.integers(2), 20 + random.integers(9), 10), random.integers(2))
            for left in columns
        ]

    true, predicted = picture(), picture()
    found = match_segments(segments(*true), segments(*predicted), "instance", 2)
    if true or predicted:
        assert found.quality == pytest.approx(naive_quality(true, predicted))
    counted = found.confusion
    assert counted[:2].sum() == len(true)
    assert counted[:, :2].sum() == len(predicted)


def test_confusion() -> None:
    a, b, c = rectangle(0, 0, 10, 10), rectangle(0, 20, 10, 10), rectangle(20, 0, 10, 10)
    found = match_segments(segments((a, 0), (b, 1)), segments((a, 0), (b, 0), (c, 1)), "panoptic", 2)
    np.testing.assert_array_equal(found.confusion, [[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert found.quality == pytest.approx(1 / 2.5)
    first, second = class_qualities(found.confusion, found.ious, "panoptic")
    assert (first.true, first.recall, first.precision, first.quality) == (1, 1, 0.5, pytest.approx(2 / 3))
    assert (second.true, second.recall, second.precision, second.quality) == (1, 0, 0, 0)


def test_each_segment_is_counted_once() -> None:
    a = (rectangle(0, 0, 10, 10), 0)
    assert match_segments(segments(a, a), segments(a), "instance", 1).confusion.tolist() == [[1, 1], [0, 0]]
    assert match_segments(segments(a), segments(a, a), "instance", 1).confusion.tolist() == [[1, 0], [1, 0]]


def test_crowds_are_neither_found_nor_missed() -> None:
    crowd, inside = rectangle(0, 0, 30, 30), rectangle(5, 5, 8, 8)
    found = match_segments(segments((crowd, 0), crowds=(0,)), segments((inside, 0)), "instance", 1)
    assert not found.confusion.any()
    assert found.quality is None


def test_nothing() -> None:
    assert match_segments(Segments(), Segments(), "instance", 1).quality is None
    square = segments((rectangle(0, 0, 5, 5), 0))
    missed = match_segments(square, Segments(), "instance", 1)
    assert (missed.quality, missed.confusion.tolist()) == (0, [[0, 1], [0, 0]])
    unfounded = match_segments(Segments(), square, "instance", 1)
    assert (unfounded.quality, unfounded.confusion.tolist()) == (0, [[0, 0], [1, 0]])


def test_a_half_is_enough() -> None:
    square, half = rectangle(0, 0, 10, 10), rectangle(0, 0, 5, 10)
    assert match_segments(segments((square, 0)), segments((half, 0)), "instance", 1).quality == 0.5
    smaller = match_segments(segments((square, 0)), segments((rectangle(0, 0, 7, 7), 0)), "instance", 1)
    assert (smaller.quality, smaller.confusion.tolist()) == (0, [[0, 1], [1, 0]])


def test_pixels() -> None:
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, 4, (30, 20)), random.integers(0, 3, (30, 20))  # 3 is void
    found = match_segments(
        segments(*[(np.asfortranarray(true == c, np.uint8), c) for c in range(4)], crowds=(3,)),
        segments(*[(np.asfortranarray(predicted == c, np.uint8), c) for c in range(3)]),
        "semantic",
        3,
    )
    expected = [[int(((true == t) & (predicted == p)).sum()) for p in range(3)] for t in range(3)]
    np.testing.assert_array_equal(found.confusion[:3, :3], expected)
    known = true != 3
    ious = [((true == c) & (predicted == c)).sum() / (((true == c) | (predicted == c)) & known).sum() for c in range(3)]
    assert found.quality == pytest.approx(np.mean(ious))
    assert [q.quality for q in class_qualities(found.confusion, found.ious, "semantic")] == pytest.approx(ious)
