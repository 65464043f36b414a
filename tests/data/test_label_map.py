"""Label maps: moved as one, cut into masks, encoded as run lengths."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import transforms as T
from PIL import Image

from mask2former.data.label_map import LabelMap, encode_label_map, move_labels, unflipped


@pytest.mark.parametrize(("shape", "largest"), [((9, 7), 5), ((1, 30), 3), ((30, 1), 3), ((20, 30), 400), ((4, 4), 0)])
def test_encoding_equals_that_of_single_masks(shape: tuple[int, int], largest: int) -> None:
    labels = np.random.randint(0, largest + 1, shape)
    rles = encode_label_map(labels, largest + 2)  # the last two are absent
    assert len(rles) == largest + 2
    for label, rle in enumerate(rles, 1):
        assert rle == mask_util.encode(np.asfortranarray(labels == label))


@pytest.mark.parametrize("largest", [200, 40_000])
def test_labels_move_like_the_image(largest: int) -> None:
    labels = np.random.randint(0, largest + 1, (31, 45)).astype(np.int32)
    resized = np.asarray(Image.fromarray(labels).resize((50, 20), Image.NEAREST))
    np.testing.assert_array_equal(move_labels(T.ResizeTransform(31, 45, 20, 50), labels), resized)
    np.testing.assert_array_equal(move_labels(T.HFlipTransform(45), labels), labels[:, ::-1])
    padded = move_labels(T.PadTransform(0, 0, 5, 3, seg_pad_value=0), labels)
    np.testing.assert_array_equal(padded, np.pad(labels, ((0, 3), (0, 5))))


def test_masks_of_what_is_left() -> None:
    labels = np.random.choice([0, 1, 2, 4, 5], (12, 10))
    label_map = LabelMap(labels, np.array([7, 8, 9, LabelMap.NO_CLASS, 7]))  # segment 3 is gone, 4 is no target
    classes, masks = label_map.masks()
    assert classes.tolist() == [7, 8, 7]
    np.testing.assert_array_equal(masks, np.stack([labels == label for label in (1, 2, 5)]))
    expected = np.zeros_like(labels)
    for label, value in {1: 8, 2: 9, 5: 8}.items():
        expected[labels == label] = value
    np.testing.assert_array_equal(label_map.class_map(), expected)


def test_a_map_without_segments() -> None:
    classes, masks = LabelMap(np.zeros((3, 4), dtype=np.uint8), np.zeros(0, dtype=np.int64)).masks()
    assert (classes.shape, masks.shape, masks.dtype) == ((0,), (0, 3, 4), bool)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 5, 1), (0, 5, 3)])
def test_unflipped_arrays_have_their_own_values(shape: tuple[int, ...]) -> None:
    array = np.random.randint(0, 256, shape).astype(np.uint8)
    assert unflipped(array) is array
    result = unflipped(array[:, ::-1])
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, array[:, ::-1])
