"""Run lengths are checked before pycocotools sees them, which reads whatever is in memory behind a short one."""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from mask2former.data.datasets.formats.masks import measure_segmentation


@pytest.mark.parametrize("seed", range(20))
def test_every_spelling_of_a_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 300, 2))
    mask = random.random((height, width)) < random.choice([0.001, 0.5, 0.999])
    mask[random.integers(height), random.integers(width)] = True
    compressed = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs, current = [0], False
    for value in mask.ravel(order="F").tolist():
        if value != current:
            runs.append(0)
            current = value
        runs[-1] += 1
    spellings: list[Any] = [compressed["counts"], compressed["counts"].decode(), runs]
    for counts in spellings:
        measured = measure_segmentation({"size": [height, width], "counts": counts}, (height, width))
        assert measured["area"] == mask.sum()
        assert measured["bbox"] == mask_util.toBbox(compressed).tolist()
        np.testing.assert_array_equal(mask_util.decode(measured["segmentation"]), mask)


@pytest.mark.parametrize("counts", [b"", b"0" * 50, b"zzzz", b"\xff\xfe", b"ooooooooooooo0", "oooo"])
def test_wrong_run_lengths(counts: bytes | str) -> None:
    with pytest.raises(ValueError, match="an RLE has"):
        measure_segmentation({"size": [4, 5], "counts": counts}, (4, 5))
