"""Label maps: moved as one, cut into masks, encoded as run lengths."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from mask2former.data.label_map import LabelMap, encode_label_map, move_labels, replace_labels, unflipped


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_targets_are_what_is_left(dtype: type) -> None:
    labels = np.random.choice([0, 1, 2, 4, 5], (12, 10)).astype(dtype)
    label_map = LabelMap(labels, np.array([7, 8, 9, LabelMap.NO_CLASS, 7]))  # segment 3 is gone, 4 is no target
    classes, masks = label_map.targets()
    assert classes.tolist() == [7, 8, 7]
    np.testing.assert_array_equal(masks, np.stack([labels == label for label in (1, 2, 5)]))
    assert masks.id_map.dtype == masks.ids.dtype == (torch.uint8 if dtype == np.uint8 else torch.int32)
    expected = np.zeros_like(labels)
    for label, value in {1: 8, 2: 9, 5: 8}.items():
        expected[labels == label] = value
    np.testing.assert_array_equal(label_map.class_map(), expected)


@pytest.mark.parametrize("count", [5, 250, 3000])
def test_the_smallest_segments_are_targets_too(count: int) -> None:
    labels = np.zeros((90, 80), dtype=np.min_scalar_type(count))
    shown = np.random.permutation(count)[: count // 2] + 1
    labels.ravel()[np.random.permutation(labels.size)[: len(shown)]] = shown
    classes, masks = LabelMap(labels.astype(np.int32) if count > 255 else labels, np.arange(count)).targets()
    assert sorted(classes + 1) == sorted(shown)
    assert masks.full().sum(dim=(1, 2)).tolist() == [1] * len(shown)


def test_as_many_targets_as_a_byte_has_values() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    classes, masks = LabelMap(labels, np.zeros(255, dtype=np.int64)).targets()
    assert len(classes) == 255
    np.testing.assert_array_equal(masks[254], labels == 255)


@pytest.mark.parametrize("largest", [9, 254, 255, 300])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_replaced_labels(largest: int, dtype: type) -> None:
    values = np.append(np.random.randint(0, largest, 255), largest)
    labels = np.arange(256).reshape(8, 32).astype(dtype)
    replaced = replace_labels(labels, values)
    np.testing.assert_array_equal(replaced, values[labels])
    assert replaced.dtype == (np.uint8 if largest < 256 else np.uint16)
    np.testing.assert_array_equal(replace_labels(labels[:1] % 4, values[:4]), values[labels[:1] % 4])


def test_more_segments_than_a_byte_has_values_of_which_bytes_are_left() -> None:
    classes, masks = LabelMap(np.array([[0, 7, 255]], dtype=np.uint8), np.arange(300)).targets()
    assert classes.tolist() == [6, 254]
    np.testing.assert_array_equal(masks, [[[False, True, False]], [[False, False, True]]])


def test_a_map_without_segments() -> None:
    classes, masks = LabelMap(np.zeros((3, 4), dtype=np.uint8), np.zeros(0, dtype=np.int64)).targets()
    assert (classes.shape, masks.shape, masks.dtype) == ((0,), (0, 3, 4), torch.bool)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 5, 1), (0, 5, 3)])
def test_unflipped_arrays_have_their_own_values(shape: tuple[int, ...]) -> None:
    array = np.random.randint(0, 256, shape).astype(np.uint8)
    assert unflipped(array) is array
    result = unflipped(array[:, ::-1])
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, array[:, ::-1])


def test_a_single_row_from_bottom_to_top_can_become_a_tensor() -> None:
    row = np.arange(6, dtype=np.uint8).reshape(1, 6)
    assert torch.from_numpy(unflipped(row[::-1])).tolist() == row.tolist()
