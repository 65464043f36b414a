"""Intensity augmentations that Detectron2 does not have."""

import numpy as np
from detectron2.data import transforms as T

__all__ = ["RandomGamma", "RandomInvert"]


class _Lookup(T.Transform):
    """Replace every 8-bit value by ``table`` (256,) uint8 of it; geometry stays."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self._set_attributes({"table": table})

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self.table[image]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class RandomGamma(T.Augmentation):
    """Raise intensities (0..1) to a power between ``1 / (1 + strength)`` and ``1 + strength``.

    Args:
        strength: 1 goes from the square root to the square.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._init({"strength": strength})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        limit = np.log1p(self.strength)
        exponent = np.exp(np.random.uniform(-limit, limit))
        return _Lookup(np.round((np.arange(256) / 255) ** exponent * 255).astype(np.uint8))


class RandomInvert(T.Augmentation):
    """Exchange black and white: fluorescence looks like bright field and the other way round.

    Args:
        prob: How often.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        self._init({"prob": prob})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if np.random.uniform() >= self.prob:
            return T.NoOpTransform()
        return _Lookup(np.arange(255, -1, -1, dtype=np.uint8))
