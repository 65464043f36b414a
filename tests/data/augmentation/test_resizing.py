"""Resizing for training beside Pillow's, which Detectron2 uses."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mask2former.data.augmentation.resizing import resize_image, resize_labels


def smooth(height: int, width: int) -> np.ndarray:
    """Blobs of all grey levels: (H, W, 3) uint8."""
    coarse = np.random.randint(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("smallest", "largest"), [(5, 40), (200, 400)])
def test_images_are_pillows_but_for_a_grey_level_here_and_there(smallest: int, largest: int) -> None:
    errors = []  # Pillow's releases differ by as much, so what counts is how near both are to what is exact
    for flipped in [False, True] * 15:
        image = smooth(*np.random.randint(40, 200, 2))
        image = image[:, ::-1] if flipped else image
        height, width = np.random.randint(smallest, largest, 2).tolist()
        pillows = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        ours = resize_image(image, (height, width))
        assert np.abs(ours.astype(int) - pillows).max() <= 1
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double()
        exact = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        errors.append([np.abs(resized - exact).mean() for resized in (ours, pillows)])
    our_error, pillows_error = np.mean(errors, axis=0)
    assert our_error < 1.002 * pillows_error


def test_doubled_images_are_pillows() -> None:
    image = smooth(50, 60)
    expected = np.asarray(Image.fromarray(image).resize((120, 100), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_image(image, (100, 120)), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    image = np.random.randint(0, 256, (20, 30, channels)).astype(np.uint8)
    planes = [
        np.asarray(Image.fromarray(plane).resize((60, 40), Image.Resampling.BILINEAR))
        for plane in image.transpose(2, 0, 1)
    ]
    np.testing.assert_array_equal(resize_image(image, (40, 60)), np.stack(planes, axis=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_are_pillows(dtype: type) -> None:
    for _ in range(200):
        (height, width), size = np.random.randint(1, 300, 2), tuple(np.random.randint(1, 500, 2).tolist())
        labels = np.random.randint(0, 256, (height, width)).astype(dtype)
        expected = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
        resized = resize_labels(labels, size)
        np.testing.assert_array_equal(resized, expected)
        assert resized.dtype == dtype
        top, left = (np.random.randint(0, length) for length in size)
        rows, columns = slice(top, top + 64), slice(left, left + 64)
        np.testing.assert_array_equal(resize_labels(labels, size, rows, columns), expected[rows, columns])
