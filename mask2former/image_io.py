"""Reading photographs and label PNGs, with one clear error for each way in which a file can be bad."""

import functools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["UnreadableImage", "image_size", "read_image", "read_label_image", "to_eight_bits", "verify_image"]

_logger = logging.getLogger(__name__)


class UnreadableImage(ValueError):  # noqa: N818  as PIL.UnidentifiedImageError, it is no fault of a program
    """A file is not an image, or is damaged."""


_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSED = {5, 6, 7, 8}  # orientations that swap width and height
# What a PNG has in it if it says how to turn it, in one of three ways, or has several frames.
_TURNED_OR_ANIMATED = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp", b"acTL")


def read_image(path: str | Path, image_format: str = "RGB", *, content: bytes | None = None) -> np.ndarray:
    """Read an image as the model sees it: upright (EXIF), 8 bits, no alpha.

    Gray images become colour images of three equal channels. Images of 16 bits, 32 bits and floats have no fixed range
    (a 12-bit microscope writes 16-bit files), so each is stretched linearly from its 0.1 to its 99.9 percentile. NaN,
    as maps have it where nothing was measured, does not count and becomes black. Of several frames or pages it is the
    first, with a warning.

    Args:
        path: Any file that Pillow opens.
        image_format: Order of the channels: "RGB", "BGR", or "L" for one channel of gray.
        content: Of the file, where it was read already; ``path`` is for messages then.

    Returns:
        (H, W, 3) uint8, or (H, W, 1) for "L".

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file is not an image or is cut short, or ``image_format`` is unknown.
    """
    if image_format not in ("RGB", "BGR", "L"):
        raise ValueError(f'INPUT.FORMAT is "{image_format}", expected "RGB", "BGR" or "L".')
    if content is None:
        with _opening(path), PathManager.open(str(path), "rb") as file:
            content = file.read()
    if image_format == "L":
        return np.array(_as_8_bits(_load(path, content)).convert("L"))[:, :, np.newaxis]
    pixels = _decode_plain_png(content, image_format)
    if pixels is None:
        pixels = _rgb(_as_8_bits(_load(path, content)))
        pixels = pixels[:, :, ::-1] if image_format == "BGR" else pixels
    return pixels


def _decode_plain_png(content: bytes, image_format: str) -> np.ndarray | None:
    """What Pillow makes of a PNG of 8-bit colours, sooner: (H, W, 3) uint8. None of all else, or damaged."""
    if not content.startswith(b"\x89PNG") or any(word in content for word in _TURNED_OR_ANIMATED):
        return None  # OpenCV would not turn it, nor blend frames as Pillow does
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None  # Pillow warns of so many pixels, or refuses them
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
        return None
    return pixels if image_format == "BGR" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def to_eight_bits(image: Image.Image) -> np.ndarray:
    """What :func:`read_image` gives for an image that Pillow has opened already: (H, W, 3) uint8 RGB, upright."""
    return _rgb(_as_8_bits(ImageOps.exif_transpose(image)))


def read_label_image(path: str | Path, *, bytes_stay: bool = False) -> np.ndarray:
    """Read a picture whose pixel values are ids (of classes or instances), not colours.

    Palette images give their indices. Colour images are taken only if their channels are equal.

    Args:
        path: A PNG or TIFF of 1, 8, 16 or 32 bits.
        bytes_stay: Give uint8 where there are no more than 8 bits.

    Returns:
        (H, W) int64, or uint8 if ``bytes_stay``.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file is unreadable, a JPEG, coloured, or has negative or fractional values.
    """
    image = _load(path)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(f"{path}: is a JPEG, which changes ids, whatever its name says. Save the ids as PNG.")
    labels = np.asarray(image)
    if labels.ndim == 3:
        if not (labels.shape[2] >= 3 and (labels[..., :3] == labels[..., :1]).all()):
            raise ValueError(
                f"{path}: is a colour picture of {labels.shape[2]} channels, expected one channel of ids. "
                "Save the ids themselves (8 or 16 bits), not colours that stand for them."
            )
        labels = labels[..., 0]
    if bytes_stay and labels.dtype == np.uint8:
        return labels
    with np.errstate(invalid="ignore"):  # of NaN and of what is too large, which differ then
        ids = labels.astype(np.int64)
    if (ids < 0).any() or (ids != labels).any():
        raise ValueError(f"{path}: has negative or fractional values, expected whole ids from 0 upwards.")
    return ids


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` returns it, from its header alone."""
    with _opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # whose size Pillow may have turned already
            width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        return (width, height) if image.getexif().get(_ORIENTATION) in _TRANSPOSED else (height, width)


def verify_image(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` returns it, after a look at every byte of it.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file is not an image or is cut short.
    """
    size = image_size(path)
    with _opened(path) as image:
        # JPEGs need not be decoded in full for that.
        image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
    return size


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    with (
        _opening(path),
        PathManager.open(str(path), "rb") if content is None else BytesIO(content) as file,
        Image.open(file) as image,
    ):
        yield image


@contextmanager
def _opening(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a file is open into errors that name it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file. Check the folders of the data set.") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        # Of a file that is no picture Pillow says where in memory it is.
        reason = "its content has no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        remedy = "It is damaged, cut short or of an unknown format: copy it again, or take it out of the data set."
        if isinstance(error, Image.DecompressionBombError):
            remedy = "If it may be so large, lift Pillow's limit: PIL.Image.MAX_IMAGE_PIXELS = None in Python."
        raise UnreadableImage(f"{path}: cannot be read as an image ({reason}). {remedy}") from error


def _load(path: str | Path, content: bytes | None = None) -> Image.Image:
    with _opened(path, content) as image:
        # What a telephone adds to a JPEG, a preview or the dark part of a photograph, is no frame that anyone misses.
        if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
            _warn_of_frames(str(path), frames)
        ImageOps.exif_transpose(image, in_place=True)  # reads it
        return image


@functools.lru_cache(maxsize=10_000)
def _warn_of_frames(path: str, frames: int) -> None:
    _logger.warning(
        f"{path}: has {frames} frames or pages, of which the first is read; write each to a file of its own."
    )


def _rgb(image: Image.Image) -> np.ndarray:
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _as_8_bits(image: Image.Image) -> Image.Image:
    return _stretch_to_8_bits(np.asarray(image)) if image.mode.startswith(("I", "F")) else image


def _stretch_to_8_bits(pixels: np.ndarray) -> Image.Image:
    pixels = pixels.astype(np.float64)
    measured = pixels[np.isfinite(pixels)]
    if not measured.size:
        measured = np.zeros(1)
    low, high = np.percentile(measured, (0.1, 99.9))
    if high <= low:  # nearly constant: a few bright pixels on black, or nothing
        low, high = measured.min(), measured.max()
    pixels = np.nan_to_num(pixels, copy=False, nan=low, posinf=high, neginf=low)
    scaled = (pixels - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.clip(scaled.round(), 0, 255).astype(np.uint8))
