"""The lists of augmentations that the dataset mappers apply, read from the configuration."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from .geometric import FastResize, RandomQuarterTurn, ResizeAndCrop, ResizeByFactor, ResizeShortestEdge
from .intensity import RandomGamma, RandomInvert

__all__ = ["build_crop_recipe", "build_lsj_recipe", "build_test_augmentations"]

_FLIPS = {"none": (), "horizontal": ("horizontal",), "vertical": ("vertical",), "both": ("horizontal", "vertical")}


def build_crop_recipe(cfg: CfgNode) -> list[T.Augmentation]:
    """Of the ``mask_former_*`` mappers, which pad in the end: resize the shorter edge, crop, change colours, flip."""
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling not in ("choice", "range") or not sizes or (sampling == "range" and len(sizes) != 2):
        raise ValueError(
            f'INPUT.MIN_SIZE_TRAIN_SAMPLING is "{sampling}" and INPUT.MIN_SIZE_TRAIN {sizes}; expected "choice" of one '
            'size or more, or the "range" between two.'
        )
    augmentations: list[T.Augmentation] = [FastResize(ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, sampling))]
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        _check_crop(crop.TYPE, crop.SIZE)
        # Void is 0 in the maps that the mappers show to their augmentations.
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, ignored_category=0)
        )
    return augmentations + _colours(cfg) + _flips_and_turns(cfg)


def _check_crop(kind: str, size: Sequence[float]) -> None:
    def fits(side: float) -> bool:
        if kind in ("relative", "relative_range"):
            return 0 < side <= 1
        return kind in ("absolute", "absolute_range") and isinstance(side, int) and side >= 1

    if len(size) != 2 or not all(fits(side) for side in size):
        raise ValueError(
            f'INPUT.CROP.TYPE is "{kind}" and INPUT.CROP.SIZE {size}; expected "absolute" or "absolute_range" with a '
            'height and a width in pixels, or "relative" or "relative_range" with shares of the image, above 0 to 1.'
        )


def build_lsj_recipe(cfg: CfgNode) -> list[T.Augmentation]:
    """Of the ``coco_*_lsj`` mappers, large-scale jittering: flip, resize by a wide range, crop or pad to a square."""
    size, scales = cfg.INPUT.IMAGE_SIZE, (cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE)
    reference = cfg.INPUT.SCALE_REFERENCE
    if reference not in ("crop", "image"):
        raise ValueError(f'INPUT.SCALE_REFERENCE is "{reference}", expected "crop" or "image".')
    if size < 1 or not 0 < scales[0] <= scales[1]:
        raise ValueError(
            f"INPUT.IMAGE_SIZE is {size}, and INPUT.MIN_SCALE and MAX_SCALE are {scales}; expected at least one pixel, "
            "and factors above 0, the smaller one first."
        )
    resize = T.ResizeScale(*scales, size, size) if reference == "crop" else ResizeByFactor(*scales)
    return [*_flips_and_turns(cfg), *_colours(cfg), ResizeAndCrop(resize, size)]


def build_test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """What happens to an image at test time: one deterministic resize.

    ``INPUT.TEST_SCALE`` scales by a factor; else the shorter edge becomes ``INPUT.MIN_SIZE_TEST`` (0 leaves the image
    alone) and the longer one at most ``INPUT.MAX_SIZE_TEST``.
    """
    if cfg.INPUT.TEST_SCALE > 0:
        return [ResizeByFactor(cfg.INPUT.TEST_SCALE, cfg.INPUT.TEST_SCALE)]
    return [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]


def _flips_and_turns(cfg: CfgNode) -> list[T.Augmentation]:
    if cfg.INPUT.RANDOM_FLIP not in _FLIPS:
        raise ValueError(f'INPUT.RANDOM_FLIP is "{cfg.INPUT.RANDOM_FLIP}", expected one of {", ".join(_FLIPS)}.')
    directions = _FLIPS[cfg.INPUT.RANDOM_FLIP]
    flips = [T.RandomFlip(horizontal=way == "horizontal", vertical=way == "vertical") for way in directions]
    return [*flips, RandomQuarterTurn()] if cfg.INPUT.RANDOM_QUARTER_TURN else flips


def _colours(cfg: CfgNode) -> list[T.Augmentation]:
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    if cfg.INPUT.RANDOM_GAMMA > 0:
        augmentations.append(RandomGamma(cfg.INPUT.RANDOM_GAMMA))
    if cfg.INPUT.RANDOM_INVERT > 0:
        augmentations.append(RandomInvert(cfg.INPUT.RANDOM_INVERT))
    return augmentations
