"""Single augmentations, and the recipes made of them."""

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from mask2former.data.augmentation import (
    FastResize,
    PadToMultiple,
    QuarterTurn,
    RandomGamma,
    RandomInvert,
    RandomQuarterTurn,
    ResizeAndCrop,
    ResizeByFactor,
    build_crop_recipe,
    build_lsj_recipe,
    build_test_augmentations,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("turns", range(4))
def test_points_turn_with_their_pixels(turns: int) -> None:
    transform = QuarterTurn(turns, 5, 8)
    turned = transform.apply_image(IMAGE)
    for row in range(5):
        for column in range(8):
            x, y = transform.apply_coords(np.array([[column + 0.5, row + 0.5]]))[0]
            np.testing.assert_array_equal(turned[int(y), int(x)], IMAGE[row, column])
    np.testing.assert_array_equal(transform.inverse().apply_image(turned), IMAGE)
    points = np.random.rand(6, 2) * 5
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points.copy())), points)


def test_random_quarter_turns_are_uniform() -> None:
    counts = np.bincount([RandomQuarterTurn().get_transform(IMAGE).turns for _ in range(2000)], minlength=4)
    assert (abs(counts - 500) < 100).all()


def test_resize_by_factor() -> None:
    assert ResizeByFactor(2.5, 2.5).get_transform(IMAGE).apply_image(IMAGE).shape == (12, 20, 3)
    assert ResizeByFactor(0.01, 0.01).get_transform(IMAGE).apply_image(IMAGE).shape == (1, 1, 3)


@pytest.mark.parametrize(("shortest", "expected"), [(10, (10, 16)), (3, (3, 5)), (0, (5, 8))])
def test_fast_resize_is_its_resize(shortest: int, expected: tuple[int, int]) -> None:
    resize = T.ResizeShortestEdge(shortest, 1000)
    ours, theirs = FastResize(resize).get_transform(IMAGE), resize.get_transform(IMAGE)
    difference = ours.apply_image(IMAGE).astype(int) - theirs.apply_image(IMAGE)
    assert difference.shape == (*expected, 3)
    assert abs(difference).max() <= 1
    labels = IMAGE[..., 0] // 50
    np.testing.assert_array_equal(ours.apply_segmentation(labels), theirs.apply_segmentation(labels))
    points = np.random.rand(6, 2) * 5
    np.testing.assert_array_equal(ours.apply_coords(points.copy()), theirs.apply_coords(points.copy()))


@pytest.mark.parametrize(("size", "expected"), [(4, (8, 8)), (5, (5, 10)), (64, (64, 64)), (1, (5, 8))])
def test_pad_to_multiple(size: int, expected: tuple[int, int]) -> None:
    transform = PadToMultiple(size).get_transform(IMAGE)
    padded = transform.apply_image(IMAGE)
    assert padded.shape[:2] == expected
    np.testing.assert_array_equal(padded[:5, :8], IMAGE)
    assert (padded[5:] == 128).all()
    assert (padded[:, 8:] == 128).all()
    assert transform.apply_segmentation(np.ones((5, 8), dtype=np.uint8)).sum() == 40


@pytest.mark.parametrize("channels", [(3,), (1,)])
@pytest.mark.parametrize("flipped", [False, True])
def test_resize_and_crop_are_detectron2s_in_a_row(channels: tuple[int, ...], flipped: bool) -> None:
    cropped_or_padded = set()
    for seed in range(20):
        height, width = np.random.default_rng(seed).integers(5, 60, 2)
        image = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
        labels = image[..., 0] // 50
        if flipped:
            image, labels = image[:, ::-1], labels[:, ::-1]
        resize = T.ResizeScale(0.2, 2.0, 32, 32)
        separate = T.AugmentationList([resize, T.FixedSizeCrop((32, 32), seg_pad_value=0)])
        results = []
        for augmentations in (separate, T.AugmentationList([ResizeAndCrop(resize, 32)])):
            np.random.seed(seed)
            transform = augmentations(T.AugInput(image))
            points = np.random.default_rng(seed).uniform(0, 30, (6, 2))
            results.append(
                [
                    transform.apply_image(image),
                    transform.apply_segmentation(labels),
                    transform.apply_coords(points),
                    np.random.rand(1),  # as many random numbers are used
                ]
            )
        for theirs, ours in zip(*results, strict=True):
            # Pixels of images may be rounded otherwise (test_resizing.py).
            np.testing.assert_allclose(ours.astype(float), theirs, rtol=0, atol=1 if theirs is results[0][0] else 0)
            assert ours.dtype == theirs.dtype
        cropped_or_padded |= {"padded" if (results[0][0][-1] == 128).all() else "cropped"}
    assert cropped_or_padded == {"padded", "cropped"}


def test_intensities() -> None:
    np.testing.assert_array_equal(RandomInvert(1.0).get_transform(IMAGE).apply_image(IMAGE), 255 - IMAGE)
    np.testing.assert_array_equal(RandomInvert(0.0).get_transform(IMAGE).apply_image(IMAGE), IMAGE)
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256)
    halves = [RandomGamma(1.0).get_transform(ramp).apply_image(ramp)[0] for _ in range(300)]
    for values in halves:
        assert (values[0], values[255]) == (0, 255)
        assert (np.diff(values.astype(int)) >= 0).all()
    middle = np.array(halves)[:, 128] / 255
    assert middle.min() < 0.29  # 0.5 ** 2 = 0.25
    assert middle.max() > 0.66  # 0.5 ** 0.5 = 0.71
    transform = RandomGamma(1.0).get_transform(ramp)
    assert transform.apply_segmentation(ramp) is ramp


def names(augmentations: list[T.Augmentation | T.Transform]) -> list[str]:
    return [type(augmentation).__name__ for augmentation in augmentations]


def test_recipes_of_the_official_release(cfg: CfgNode) -> None:
    recipe = build_lsj_recipe(cfg)
    assert names(recipe) == ["RandomFlip", "ResizeAndCrop"]
    assert names([recipe[-1].resize]) == ["ResizeScale"]
    assert names(build_crop_recipe(cfg)) == ["FastResize", "RandomFlip"]
    assert names([build_crop_recipe(cfg)[0].resize]) == ["ResizeShortestEdge"]
    cfg.INPUT.CROP.ENABLED = cfg.INPUT.COLOR_AUG_SSD = True
    crop, colours = "RandomCrop_CategoryAreaConstraint", "ColorAugSSDTransform"
    assert names(build_crop_recipe(cfg)) == ["FastResize", crop, colours, "RandomFlip"]
    assert names(build_test_augmentations(cfg)) == ["ResizeShortestEdge"]


def test_recipe_for_microscopes(cfg: CfgNode) -> None:
    cfg.INPUT.RANDOM_FLIP = "both"
    cfg.INPUT.RANDOM_QUARTER_TURN = cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.RANDOM_GAMMA = cfg.INPUT.RANDOM_INVERT = 0.5
    cfg.INPUT.SCALE_REFERENCE = "image"
    recipe = build_lsj_recipe(cfg)
    expected = ["RandomFlip", "RandomFlip", "RandomQuarterTurn", "ColorAugSSDTransform", "RandomGamma", "RandomInvert"]
    assert names([*recipe, recipe[-1].resize]) == [*expected, "ResizeAndCrop", "ResizeByFactor"]
    assert [(flip.horizontal, flip.vertical) for flip in recipe[:2]] == [(True, False), (False, True)]
    cfg.INPUT.RANDOM_FLIP = "none"
    assert names(build_lsj_recipe(cfg))[0] == "RandomQuarterTurn"


def test_sizes_at_test_time(cfg: CfgNode) -> None:
    def size() -> tuple[int, ...]:
        aug_input = T.AugInput(IMAGE)
        T.AugmentationList(build_test_augmentations(cfg))(aug_input)
        return aug_input.image.shape[:2]

    cfg.INPUT.MIN_SIZE_TEST = 10
    assert size() == (10, 16)
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert size() == (5, 8)
    cfg.INPUT.TEST_SCALE = 3.0
    assert size() == (15, 24)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (2, 2000)])
def test_narrow_images_keep_a_pixel(cfg: CfgNode, shape: tuple[int, int]) -> None:
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 128
    image = T.AugInput(np.zeros((*shape, 3), np.uint8))
    T.AugmentationList(build_test_augmentations(cfg))(image)
    assert sorted(image.image.shape[:2]) == [1, 128]
    cfg.INPUT.IMAGE_SIZE = 64
    image = T.AugInput(np.zeros((*shape, 3), np.uint8))
    T.AugmentationList(build_lsj_recipe(cfg))(image)
    assert image.image.shape == (64, 64, 3)


def test_values_that_do_not_exist(cfg: CfgNode) -> None:
    cfg.INPUT.SCALE_REFERENCE = "native"
    with pytest.raises(ValueError, match='SCALE_REFERENCE is "native", expected "crop" or "image"'):
        build_lsj_recipe(cfg)
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError, match='RANDOM_FLIP is "diagonal", expected one of none, horizontal, vertical, both'):
        build_crop_recipe(cfg)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("absolut", (48, 48)),
        ("absolute", (0.5, 0.5)),
        ("absolute", (48,)),
        ("absolute_range", (0, 48)),
        ("relative", (48, 48)),
    ],
)
def test_crops_that_cannot_be_are_an_error(cfg: CfgNode, kind: str, size: tuple[float, ...]) -> None:
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, kind, size
    with pytest.raises(ValueError, match=rf'CROP\.TYPE is "{kind}" and INPUT\.CROP\.SIZE \(.*; expected "absolute"'):
        build_crop_recipe(cfg)


@pytest.mark.parametrize(("sampling", "sizes"), [("any", (640,)), ("choice", ()), ("range", (640,))])
def test_sizes_that_cannot_be_are_an_error(cfg: CfgNode, sampling: str, sizes: tuple[int, ...]) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.MIN_SIZE_TRAIN = sampling, sizes
    with pytest.raises(
        ValueError, match=rf'SAMPLING is "{sampling}" and INPUT\.MIN_SIZE_TRAIN \(.*; expected "choice"'
    ):
        build_crop_recipe(cfg)


@pytest.mark.parametrize(("size", "scales"), [(0, (0.5, 2.0)), (64, (2.0, 0.5)), (64, (0.0, 1.0))])
def test_scales_that_cannot_be_are_an_error(cfg: CfgNode, size: int, scales: tuple[float, float]) -> None:
    cfg.INPUT.IMAGE_SIZE, (cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) = size, scales
    with pytest.raises(
        ValueError, match=rf"IMAGE_SIZE is {size}, and INPUT\.MIN_SCALE and MAX_SCALE are \(.*; expected"
    ):
        build_lsj_recipe(cfg)
