"""From class and instance maps to segments."""

import numpy as np

from mask2former.data.datasets.segments import VOID, split_segments


def test_against_pixel_sets() -> None:
    for _ in range(20):
        classes = np.random.choice([VOID, 0, 1, 2, 3], (9, 11))
        instances = np.random.choice([0, 1, 7, 70_000], (9, 11))
        numbers, segments = split_segments(classes, instances, num_things=2)
        expected: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for pixel in np.ndindex(classes.shape):
            if classes[pixel] != VOID:
                key = int(classes[pixel]), int(instances[pixel]) if classes[pixel] < 2 else 0
                expected.setdefault(key, set()).add(pixel)
        assert [segment["id"] for segment in segments] == list(range(1, len(expected) + 1))
        assert (numbers == 0).sum() == (classes == VOID).sum()
        for (category, instance), segment in zip(sorted(expected), segments, strict=True):
            pixels = expected[category, instance]
            assert {(int(row), int(column)) for row, column in np.argwhere(numbers == segment["id"])} == pixels
            rows, columns = zip(*pixels, strict=True)
            box = [min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1]
            assert segment == {
                "id": segment["id"],
                "category_id": category,
                "isthing": category < 2,
                "iscrowd": int(category < 2 and instance == 0),
                "area": len(pixels),
                "bbox": box,
            }


def test_nothing_but_void_and_nothing_of_it() -> None:
    void = np.full((3, 4), VOID)
    assert split_segments(void, np.zeros((3, 4), dtype=np.int64), 1)[1] == []
    numbers, segments = split_segments(np.zeros((3, 4), dtype=np.int64), np.ones((3, 4), dtype=np.int64), 1)
    assert (numbers == 1).all()
    assert len(segments) == 1
