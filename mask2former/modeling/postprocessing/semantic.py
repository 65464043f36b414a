"""Semantic results: the score of each class at each pixel (MaskFormer, Section 3.4)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...ops.masks import classify_pixels, has_native_masks, make_resizing, resize_masks
from ...structures import LazyTensor
from .chunks import in_chunks
from .prediction import MaskGeometry

__all__ = ["ClassScores", "lazy_semantic_inference", "semantic_inference"]

# Numbers in the rows of all masks that are resized together: they fit a processor's second-level cache or nearly.
_BAND = 1 << 20
_GPU_BAND = 1 << 23  # likewise, of large GPUs


def semantic_inference(
    mask_cls: Tensor, mask_pred: Tensor, geometry: MaskGeometry, *, resize_before_inference: bool = True
) -> Tensor:
    """Score of a class at a pixel: the sum over queries of class probability times mask probability.

    Args:
        mask_cls: (Q, K + 1).
        mask_pred: (Q, h, w).
        geometry: to the output.
        resize_before_inference: mix classes at the output's size; otherwise at the padded input's, then resize scores.

    Returns:
        (K, height, width) float32; not normalised over classes.
    """
    probabilities = _class_probabilities(mask_cls)
    if has_native_masks(mask_pred, mask_cls):
        scores = mask_pred.new_empty((probabilities.shape[1], *geometry.output_size), dtype=torch.float32)
        for pixels, inside in _rows_inside(mask_pred, geometry, resize_before_inference):
            with torch.autocast(mask_pred.device.type, enabled=False):
                torch.mm(probabilities.T, inside, out=scores.flatten(1)[:, pixels])
        return scores
    resize = geometry.to_output if resize_before_inference else geometry.to_padded
    size = geometry.output_size if resize_before_inference else geometry.padded_size
    scores = mask_pred.new_zeros((probabilities.shape[1], *size), dtype=torch.float32)
    flat = scores.flatten(1)
    for chunk in in_chunks(torch.arange(len(mask_pred), device=mask_pred.device)):
        flat.addmm_(probabilities[chunk].T, resize(mask_pred[chunk]).sigmoid_().flatten(1))
    return scores if resize_before_inference else geometry.padded_to_output(scores)


class ClassScores(LazyTensor):
    """What :func:`semantic_inference` gives for its arguments, computed when someone looks at it.

    Scores of all classes at all pixels take a gigabyte for a photograph of two megapixels. Only ``argmax(0)``, the
    class of each pixel, is known at once, and found some rows at a time.
    """

    _arguments: tuple[Tensor, Tensor, MaskGeometry, bool]
    _classes: Tensor

    @staticmethod
    def __new__(
        cls,
        mask_cls: Tensor,
        mask_pred: Tensor,
        geometry: MaskGeometry,
        resize_before_inference: bool = True,
        classes: Tensor | None = None,
    ) -> "ClassScores":
        """``classes`` are those of the pixels (height, width) int64, where they are known already."""
        scores = cls.describe((mask_cls.shape[1] - 1, *geometry.output_size), torch.float32, mask_pred.device)
        scores._arguments = mask_cls, mask_pred, geometry, resize_before_inference
        scores._classes = _classify(*scores._arguments) if classes is None else classes
        return scores

    def full(self) -> Tensor:
        """All scores, an ordinary tensor."""
        mask_cls, mask_pred, geometry, resize_before_inference = self._arguments
        return semantic_inference(mask_cls, mask_pred, geometry, resize_before_inference=resize_before_inference)

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """As ``Tensor.argmax``; the classes are not to be written into."""
        return self._classes if dim in (0, -3) and not keepdim else self.full().argmax(dim, keepdim)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As ``Tensor.to``; where only the device changes, the classes and what scores are computed from go there."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype not in (None, self.dtype):
            return self.full().to(*args, **kwargs)
        if device in (None, self.device):
            return self
        mask_cls, mask_pred, geometry, resize_before_inference = self._arguments
        return ClassScores(
            mask_cls.to(device), mask_pred.to(device), geometry, resize_before_inference, self._classes.to(device)
        )


def lazy_semantic_inference(
    mask_cls: Tensor, mask_pred: Tensor, geometry: MaskGeometry, *, resize_before_inference: bool = True
) -> Tensor:
    """As :func:`semantic_inference`; :class:`ClassScores` where keeping the masks in their place takes less memory."""
    size = 4 * (mask_cls.shape[1] - 1) * math.prod(geometry.output_size)  # bytes
    if size <= mask_pred.nbytes:  # of few classes or a small output
        return semantic_inference(mask_cls, mask_pred, geometry, resize_before_inference=resize_before_inference)
    if mask_pred.untyped_storage().nbytes() > mask_pred.nbytes:
        mask_pred = mask_pred.clone()  # not to keep those of the whole batch
    return ClassScores(mask_cls, mask_pred, geometry, resize_before_inference)


def _classify(mask_cls: Tensor, mask_pred: Tensor, geometry: MaskGeometry, resize_before_inference: bool) -> Tensor:
    """``argmax(0)`` of :func:`semantic_inference`."""
    if not has_native_masks(mask_pred, mask_cls):
        return semantic_inference(
            mask_cls, mask_pred, geometry, resize_before_inference=resize_before_inference
        ).argmax(0)
    probabilities = _class_probabilities(mask_cls)
    classes = mask_pred.new_empty(geometry.output_size, dtype=torch.int64)
    for pixels, inside in _rows_inside(mask_pred, geometry, resize_before_inference):
        with torch.autocast(mask_pred.device.type, enabled=False):
            classes.view(-1)[pixels] = classify_pixels(probabilities, inside)
    return classes


def _class_probabilities(mask_cls: Tensor) -> Tensor:
    """(Q, K), without "no object"."""
    return mask_cls.float().softmax(-1)[:, :-1]


def _rows_inside(
    mask_pred: Tensor, geometry: MaskGeometry, resize_before_inference: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Which pixels of the output, some rows at a time, and their probabilities (Q, pixels) of being inside the masks.

    Resizing scores, as it is linear, is the same as resizing the probabilities of which they are sums.
    """
    height, width = geometry.output_size
    is_on_cpu = mask_pred.device.type == "cpu"
    # The network's image can have more pixels than the output.
    row = width if resize_before_inference else max(width, math.prod(geometry.image_size) // max(1, height))
    step = max(1, (_BAND if is_on_cpu else _GPU_BAND) // max(1, len(mask_pred) * row))
    # Otherwise the operator for CPUs would convert all masks for each of the bands.
    read = _reader(mask_pred.float() if is_on_cpu else mask_pred, geometry, resize_before_inference)
    for begin in range(0, height, step):
        rows = range(begin, min(height, begin + step))
        yield slice(begin * width, rows.stop * width), read(rows).flatten(1)


def _reader(mask_pred: Tensor, geometry: MaskGeometry, resize_before_inference: bool) -> Callable[[range], Tensor]:
    """A function from rows of the output to the probabilities (Q, rows, width) there."""
    if resize_before_inference or geometry.image_size == geometry.output_size:
        resizing = geometry.resizing(mask_pred)
        return lambda rows: resize_masks(mask_pred, resizing, rows, sigmoid=True)
    image_size = geometry.image_size
    to_image = MaskGeometry(geometry.padded_size, image_size, image_size).resizing(mask_pred)
    sizes = (image_size, image_size, image_size, geometry.output_size)
    to_output = make_resizing(*sizes, mask_pred.device)
    first_rows = make_resizing(*sizes).rows.first.tolist()  # the same, without waiting for a GPU
    taps = len(to_output.rows.weights)

    def read(rows: range) -> Tensor:
        image_rows = range(first_rows[rows.start], first_rows[rows.stop - 1] + taps)
        inside = resize_masks(mask_pred, to_image, image_rows, sigmoid=True)
        return resize_masks(inside, to_output.of_rows(rows, image_rows), range(len(rows)))

    return read
