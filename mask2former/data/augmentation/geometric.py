"""Geometric augmentations that Detectron2 does not have."""

import numpy as np
from detectron2.data import transforms as T

from .resizing import resize_image, resize_labels

__all__ = [
    "FastResize",
    "PadToMultiple",
    "QuarterTurn",
    "RandomQuarterTurn",
    "ResizeAndCrop",
    "ResizeByFactor",
    "ResizeShortestEdge",
]


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
        scale = self.min_scale
        if self.min_scale != self.max_scale:  # or a program that predicts would find its random numbers changed
            scale = np.random.uniform(self.min_scale, self.max_scale)
        return T.ResizeTransform(height, width, max(round(height * scale), 1), max(round(width * scale), 1))


def _of_a_pixel_at_least(resize: T.ResizeTransform) -> T.ResizeTransform:
    """The same, except that an image keeps a pixel however narrow it is."""
    resize.new_h, resize.new_w = max(resize.new_h, 1), max(resize.new_w, 1)
    return resize


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, except that an image keeps a pixel however narrow it is."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        # With a size of 0, which leaves the image alone, it is another transform.
        return _of_a_pixel_at_least(resize) if isinstance(resize, T.ResizeTransform) else resize


class FastResize(T.Augmentation):
    """A resize of Detectron2's, done by :mod:`.resizing`: for training, where a grey level does not matter.

    Args:
        resize: Gives Detectron2's ``ResizeTransform``, or none.
    """

    def __init__(self, resize: T.Augmentation) -> None:
        super().__init__()
        self._init({"resize": resize})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = self.resize.get_transform(image)
        return (
            _FastResize(resize.h, resize.w, resize.new_h, resize.new_w) if type(resize) is T.ResizeTransform else resize
        )


class _FastResize(T.ResizeTransform):
    def apply_image(self, image: np.ndarray, interp: int | None = None) -> np.ndarray:
        return resize_image(image, (self.new_h, self.new_w))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return resize_labels(segmentation, (self.new_h, self.new_w))


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


class ResizeAndCrop(T.Augmentation):
    """Resize, then crop to a square at a random place, padded at the right and the bottom where the image is smaller.

    The same as one augmentation after the other, without an array of the whole resized image.

    Args:
        resize: Gives Detectron2's ``ResizeTransform``.
        size: Of the square.
        pad_value: Value of the padding in the image; segmentations get 0.
    """

    def __init__(self, resize: T.Augmentation, size: int, pad_value: int = 128) -> None:
        super().__init__()
        self._init({"resize": resize, "size": size, "pad_value": pad_value})

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = _of_a_pixel_at_least(self.resize.get_transform(image))
        resized = np.broadcast_to(np.uint8(0), (resize.new_h, resize.new_w))  # nobody looks at more than its shape
        crop, pad = (
            T.FixedSizeCrop((self.size, self.size), pad_value=self.pad_value, seg_pad_value=0)
            .get_transform(resized)
            .transforms
        )
        return _ResizedCrop(resize, crop, pad)


class _ResizedCrop(T.Transform):
    """Three transforms in a row, the last of which pads at the right and the bottom."""

    def __init__(self, resize: T.ResizeTransform, crop: T.CropTransform, pad: T.PadTransform) -> None:
        super().__init__()
        self._set_attributes({"resize": resize, "crop": crop, "pad": pad})

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        resized = resize_image(image, (self.resize.new_h, self.resize.new_w))
        return self._pad(resized[self._kept()], self.pad.pad_value)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        resized = resize_labels(segmentation, (self.resize.new_h, self.resize.new_w), *self._kept())
        return self._pad(resized, self.pad.seg_pad_value)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return T.TransformList([self.resize, self.crop, self.pad]).apply_coords(coords)

    def _kept(self) -> tuple[slice, slice]:
        """Rows and columns of the resized image that are in the crop."""
        top, left = int(self.crop.y0), int(self.crop.x0)
        return slice(top, top + self.crop.h), slice(left, left + self.crop.w)

    def _pad(self, array: np.ndarray, value: float) -> np.ndarray:
        if self.pad.y1 == self.pad.x1 == 0:
            return array
        height, width = array.shape[:2]
        padded = np.full((height + self.pad.y1, width + self.pad.x1, *array.shape[2:]), value, dtype=array.dtype)
        padded[:height, :width] = array
        return padded
