"""Geometric augmentations that Detectron2 does not have."""

import numpy as np
from detectron2.data import transforms as T

__all__ = ["PadToMultiple", "QuarterTurn", "RandomQuarterTurn", "ResizeByFactor"]


class QuarterTurn(T.Transform):
    """Counter-clockwise rotation by a multiple of 90 degrees; no pixel is interpolated.

    Args:
        turns: Quarter turns, 0 to 3.
        height: Height of the input.
        width: Width of the input.
    """

    def __init__(self, turns: int, height: int, width: int) -> None:
        super().__init__()
        self._set_attributes({"turns": turns, "height": height, "width": width})

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.rot90(image, self.turns)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate (N, 2) points (x, y), in pixels from the upper left corner."""
        x, y = coords[:, 0], coords[:, 1]
        turned = [(x, y), (y, self.width - x), (self.width - x, self.height - y), (self.height - y, x)]
        return np.stack(turned[self.turns], axis=1)

    def inverse(self) -> T.Transform:
        height, width = (self.width, self.height) if self.turns % 2 else (self.height, self.width)
        return QuarterTurn(-self.turns % 4, height, width)


class RandomQuarterTurn(T.Augmentation):
    """Turn by 0, 90, 180 or 270 degrees, each as likely."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurn(int(np.random.randint(4)), *image.shape[:2])


class ResizeByFactor(T.Augmentation):
    """Scale by a factor relative to the image's own size, where the size of a pixel means something.

    Args:
        min_scale: Smallest factor.
        max_scale: Largest factor.
    """

    def __init__(self, min_scale: float, max_scale: float) -> None:
        super().__init__()
        self._init({"min_scale": min_scale, "max_scale": max_scale})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.min_scale, self.max_scale)
        return T.ResizeTransform(height, width, max(round(height * scale), 1), max(round(width * scale), 1))


class PadToMultiple(T.Augmentation):
    """Pad at the right and the bottom until both sides are multiples of a size.

    Args:
        size: The divisor.
        pad_value: Value of the padding in the image; segmentations get 0.
    """

    def __init__(self, size: int, pad_value: float = 128.0) -> None:
        super().__init__()
        self._init({"size": size, "pad_value": pad_value})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        return T.PadTransform(0, 0, -width % self.size, -height % self.size, width, height, self.pad_value, 0)
