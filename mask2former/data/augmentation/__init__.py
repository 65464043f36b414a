"""Augmentations, and the recipes that configurations name."""

from .geometric import (
    FastResize,
    PadToMultiple,
    QuarterTurn,
    RandomQuarterTurn,
    ResizeAndCrop,
    ResizeByFactor,
    ResizeShortestEdge,
)
from .intensity import RandomGamma, RandomInvert
from .recipes import build_crop_recipe, build_lsj_recipe, build_test_augmentations

__all__ = [
    "FastResize",
    "PadToMultiple",
    "QuarterTurn",
    "RandomGamma",
    "RandomInvert",
    "RandomQuarterTurn",
    "ResizeAndCrop",
    "ResizeByFactor",
    "ResizeShortestEdge",
    "build_crop_recipe",
    "build_lsj_recipe",
    "build_test_augmentations",
]
