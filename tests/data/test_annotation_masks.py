"""Masks of single annotations."""

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T

from mask2former.data.annotation_masks import draw_annotation


def test_polygons_are_drawn_as_on_the_whole_picture() -> None:
    """A tie of the rasteriser's own rounding may fall otherwise, at one pixel of one polygon in some thousands."""
    rng = np.random.default_rng(0)
    different = 0
    for _ in range(1000):
        height, width = (int(length) for length in rng.integers(1, 100, 2))
        polygons = []
        for _ in range(rng.integers(1, 4)):
            points = rng.uniform(-20, (width + 20, height + 20)) + rng.normal(size=(rng.integers(3, 9), 2)) * 20
            polygons.append(points.round(int(rng.integers(0, 4))).ravel().tolist())
        part, place = draw_annotation(polygons, (height, width), T.TransformList([]), (height, width))
        drawn = np.zeros((height, width), dtype=bool)
        drawn[place] = part
        expected = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))) != 0
        different += int((drawn != expected).sum())
    assert different <= 1
