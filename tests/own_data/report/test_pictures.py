"""The pictures of a page, read back from their addresses."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mask2former.evaluation.run_lengths import encode_mask
from mask2former.own_data.report.pictures import draw_pair
from mask2former.own_data.report.segments import Segments

METADATA = SimpleNamespace(
    thing_classes=["cell"],
    stuff_classes=["cell", "glass"],
    stuff_colors=[(0, 0, 0), (255, 0, 0)],
    thing_dataset_id_to_contiguous_id={1: 0},
)


def draw(folder: Path, size: tuple[int, int], predicted: Segments, true: Segments) -> list[np.ndarray]:
    file = folder / "a.png"
    Image.fromarray(np.full((*size, 3), 128, dtype=np.uint8)).save(file)
    addresses = draw_pair(str(file), predicted, true, METADATA)
    prefix = "data:image/jpeg;base64,"
    assert all(address.startswith(prefix) for address in addresses)
    decoded = (base64.b64decode(address.removeprefix(prefix)) for address in addresses)
    return [np.asarray(Image.open(io.BytesIO(content))).astype(int) for content in decoded]


def test_prediction_and_truth_are_shrunk_and_drawn(tmp_path: Path) -> None:
    left, speck, everything = (np.zeros((600, 1120), dtype=bool) for _ in range(3))
    left[:, :500], speck[300, 901], everything[:] = True, True, True
    predicted, true = Segments(), Segments()
    predicted.add(encode_mask(left), 0, 0.75)
    predicted.add(encode_mask(speck), 0, 0.5)  # which is too small to be seen
    true.add(encode_mask(~left), 1)
    true.add(encode_mask(everything), 0, crowd=True)
    first, second = draw(tmp_path, (600, 1120), predicted, true)
    assert first.shape == second.shape == (300, 560, 3)
    left_half, right_half = (slice(None), slice(0, 240)), (slice(None), slice(260, None))
    assert np.abs(first[left_half] - 128).max(axis=2).mean() > 30
    assert np.abs(first[right_half] - 128).max() < 10
    assert np.abs(second[left_half] - 128).max() < 10
    corner = second[10:40, 500:540]  # away from the edge and the label
    assert np.abs(corner - (0.55 * 128 + 0.45 * np.array([255, 0, 0]))).max() < 10


@pytest.mark.parametrize(("size", "expected"), [((20, 30), (20, 30)), ((1, 2000), (1, 560)), ((2000, 1), (560, 1))])
def test_sizes(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    nothing = Segments()
    assert [drawn.shape for drawn in draw(tmp_path, size, nothing, nothing)] == [(*expected, 3)] * 2
