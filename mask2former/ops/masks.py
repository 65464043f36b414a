"""Masks at the network's resolution to masks at the output's, and what results need of these.

Resizing to the padded input, cutting the padding off and resizing to the output are linear along each axis, so they are
one :class:`Resizing`. The native operators apply it row by row, and never hold masks at the output's size that are not
themselves the result.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._library import load_cuda_library, load_library
from .recording import is_recording

__all__ = [
    "Axis",
    "Resizing",
    "binarise_masks",
    "classify_pixels",
    "compete_masks",
    "has_native_masks",
    "make_resizing",
    "resize_masks",
]

Size = tuple[int, int]


class Axis(NamedTuple):
    """What each of the n places of an output's axis is made of: T neighbouring places of a mask.

    Attributes:
        first: (n,) int32, the first of them.
        weights: (T, n) float32, not negative.
    """

    first: Tensor
    weights: Tensor


class Resizing(NamedTuple):
    """A linear map of masks (Q, h, w) to (Q, height, width)."""

    rows: Axis
    columns: Axis

    @property
    def size(self) -> Size:
        """(height, width) of the output."""
        return len(self.rows.first), len(self.columns.first)

    def of_rows(self, rows: range, mask_rows: range) -> "Resizing":
        """From masks that are cut to some rows to some consecutive rows of the output, which are made of these."""
        first, weights = self.rows.first[rows.start : rows.stop], self.rows.weights[:, rows.start : rows.stop]
        return Resizing(Axis(first - mask_rows.start, weights), self.columns)


def make_resizing(
    mask_size: Size,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    device: torch.device | None = None,
) -> Resizing:
    """Bilinear to ``padded_size``, cut at ``image_size``, bilinear to ``output_size``; all (height, width).

    The result is kept for the next masks of these sizes, and not to be written into. None stands for the CPU; nothing
    waits for another device.
    """
    device = torch.device("cpu") if device is None else device
    # What a GPU's stream copies and frees is for that stream alone.
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    rows, columns = (
        _axis_on(device, stream, *sizes) for sizes in zip(mask_size, padded_size, image_size, output_size, strict=True)
    )
    return Resizing(rows, columns)


@lru_cache(maxsize=64)
def _axis_on(device: torch.device, stream: object, *sizes: int) -> Axis:
    # Tensors made in inference mode could be used in it alone; and a default device would be waited for.
    with torch.inference_mode(False), torch.device("cpu"):
        return Axis(*(x.to(device, non_blocking=True) for x in _axis(*sizes)))


@lru_cache(maxsize=64)
def _axis(size: int, padded: int, kept: int, output: int) -> Axis:
    # What happens to each place alone, by the functions that resize masks elsewhere: the same weights to the last bit.
    shares = torch.eye(size, dtype=torch.float32)[None]  # (1, size, size)
    if padded != size:
        shares = F.interpolate(shares, padded, mode="linear", align_corners=False)
    shares = shares[..., :kept]
    if output != kept:
        shares = F.interpolate(shares, output, mode="linear", align_corners=False)
    shares = shares[0].T  # (output, size)
    used = shares > 0
    place = torch.arange(size)
    first = torch.where(used, place, size).amin(dim=1)
    taps = int((torch.where(used, place + 1, 0).amax(dim=1) - first).max())
    first = first.clamp(max=size - taps)
    weights = shares.gather(1, first[:, None] + torch.arange(taps))  # (output, taps)
    return Axis(first.int(), weights.T.contiguous())


def has_native_masks(masks: Tensor, *others: Tensor) -> bool:
    """Whether the native operators below take these: libraries are there, nothing is recorded or differentiated."""
    return (
        masks.device.type in ("cpu", "cuda")
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (masks, *others)))
        and not is_recording()
        and load_library()
        and (masks.device.type == "cpu" or _has_native_masks_on_gpu(masks.device.index))
    )


def _has_native_masks_on_gpu(device: int) -> bool:
    # While a CUDA graph is captured, no Resizing can be copied to its stream.
    return load_cuda_library(device) and not torch.cuda.is_current_stream_capturing()


def _logits(masks: Tensor) -> Tensor:
    """The masks in a type that their device's operators take."""
    return masks if masks.is_cuda and masks.dtype in (torch.float16, torch.bfloat16) else masks.float()


def resize_masks(masks: Tensor, resizing: Resizing, rows: range, *, sigmoid: bool = False) -> Tensor:
    """Some rows of resized masks.

    Args:
        masks: (Q, h, w) logits.
        resizing: to the output.
        rows: of the output, consecutive.
        sigmoid: give probabilities.

    Returns:
        (Q, len(rows), width) float32.
    """
    result: Tensor = torch.ops.mask2former.resize_masks(
        _logits(masks), *resizing.rows, *resizing.columns, rows.start, rows.stop, sigmoid
    )
    return result


def binarise_masks(masks: Tensor, resizing: Resizing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where resized masks are positive.

    Args:
        masks: (Q, h, w) logits.
        resizing: to the output.

    Returns:
        - Binary masks (Q, height, width) bool.
        - Their areas (Q,) int64 in pixels.
        - The mean probability inside each (Q,) float32, 0 for an empty one.
        - Their tight boxes (Q, 4) float32 as (x0, y0, x1, y1) pixel edges, zeros for an empty one.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.mask2former.binarise_masks(
        _logits(masks), *resizing.rows, *resizing.columns
    )
    return result


def compete_masks(masks: Tensor, scores: Tensor, resizing: Resizing) -> tuple[Tensor, Tensor, Tensor]:
    """Give each pixel to the resized mask with the highest score times probability; the first of equals.

    Args:
        masks: (Q, h, w) logits, Q at least 1.
        scores: (Q,) in 0..1; masks whose score is not positive take no part.
        resizing: to the output.

    Returns:
        - The winner of each pixel (height, width) int32; 0 where none wins, for all that take part are NaN there.
        - Whether its probability there is at least one half (height, width) bool.
        - Numbers of pixels (3, Q) int64: where a mask's own probability is at least one half, where it wins, and both.
    """
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.mask2former.compete_masks(
        _logits(masks), scores.float(), *resizing.rows, *resizing.columns
    )
    return result


def classify_pixels(probabilities: Tensor, inside: Tensor) -> Tensor:
    """The class of each pixel with the highest sum, over masks, of the class's probability times the pixel's.

    Args:
        probabilities: (Q, K) float32, of masks to be of a class, K at least 1.
        inside: (Q, P) float32, of pixels to be in a mask.

    Returns:
        (P,) int64; the first of equals.
    """
    if inside.device.type != "cpu":
        return (probabilities.T @ inside).argmax(0)
    result: Tensor = torch.ops.mask2former.classify_pixels(probabilities, inside)
    return result
