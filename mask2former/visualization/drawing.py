"""Paint segments onto a photograph: translucent fill, crisp edge, label."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mask2former.visualization.labels import Label, place_labels, render_label
from mask2former.visualization.segments import Segment, class_name, segment_colors

__all__ = ["draw_segments", "to_rgb"]

_SUBPIXEL_BITS = 4  # OpenCV draws with coordinates in 1/16 pixel
_MAX_OUTLINES = 256  # a segment with more pieces is noise, and its specks get a fill but no outline
_SPECK = 8  # border pixels
_SUPERSAMPLED_BELOW = 4_000_000  # pixels; edges of larger pictures are smooth enough as they are


def draw_segments(
    image: np.ndarray, segments: Sequence[Segment], metadata: Any = None, *, alpha: float = 0.45
) -> np.ndarray:
    """Draw segments, large ones below small ones. A stuff class called background is what is left undrawn.

    Args:
        image: (H, W, 3), (H, W, 1) or (H, W) uint8, RGB or gray.
        segments: in any order; they may overlap.
        metadata: names and colours of the classes, as Detectron2's; None shows ids.
        alpha: opacity of the fill; edges and labels are opaque.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    canvas = to_rgb(image).copy()
    segments = sorted((s for s in segments if not _is_background(s, metadata)), key=lambda segment: -segment.area)
    if not segments:
        return canvas
    colors = segment_colors(segments, metadata)
    _fill(canvas, segments, colors, alpha)
    canvas = _draw_edges(canvas, segments, colors)
    height, width = canvas.shape[:2]
    texts = [_text(segment, metadata) for segment in segments]
    for label, color in zip(place_labels(segments, texts, height, width), colors, strict=True):
        if label is not None:
            _draw_label(canvas, label, color)
    return canvas


def to_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3), (H, W, 1) or (H, W) uint8 to (H, W, 3)."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(
            f"expected a uint8 picture of shape (H, W, 3), (H, W, 1) or (H, W), got {image.dtype} {image.shape}; "
            "convert it first, e.g. image[..., :3] for RGBA"
        )
    image = image if image.ndim == 3 else image[:, :, None]
    return image if image.shape[2] == 3 else image.repeat(3, axis=2)


def _text(segment: Segment, metadata: Any) -> str:
    # COCO's "-merged" tells of its history, not of what is seen.
    name = class_name(metadata, segment.class_id, segment.isthing).removesuffix("-merged")
    return name if segment.score is None else f"{name}  {segment.score:.0%}"  # the font's spaces are narrow


def _is_background(segment: Segment, metadata: Any) -> bool:
    return not segment.isthing and class_name(metadata, segment.class_id, False).lower() == "background"


def _fill(canvas: np.ndarray, segments: Sequence[Segment], colors: np.ndarray, alpha: float) -> None:
    """Blend the segments' colours into the picture, in place; where they overlap, the last one shows."""
    owner = np.zeros(canvas.shape[:2], dtype=np.int32)  # 1 + index of the segment
    for i, segment in enumerate(segments):
        h, w = segment.mask.shape
        owner[segment.top : segment.top + h, segment.left : segment.left + w][segment.mask] = i + 1
    covered = owner > 0
    canvas[covered] = canvas[covered] * np.float32(1 - alpha) + colors[owner[covered] - 1] * np.float32(alpha)


def _draw_edges(canvas: np.ndarray, segments: Sequence[Segment], colors: np.ndarray) -> np.ndarray:
    """Outline the segments; at twice the size where the picture is not large, for lines thinner than pixels."""
    height, width = canvas.shape[:2]
    scale = 2 if height * width < _SUPERSAMPLED_BELOW else 1
    thickness = max(scale, round(scale * 0.0022 * (height * width) ** 0.5))
    if scale == 2:
        canvas = canvas.repeat(2, axis=0).repeat(2, axis=1)
    for segment, color in zip(segments, colors, strict=True):
        outlines = [_to_fixed_point(outline, segment, scale) for outline in _outlines(segment.mask)]
        cv2.polylines(canvas, outlines, True, color.tolist(), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas if scale == 1 else cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed curves (points, 2) of (x, y) along the border pixels of a mask, the pixels' staircase smoothed away."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) > _MAX_OUTLINES:
        contours = [contour for contour in contours if len(contour) >= _SPECK]
    return [_smooth(contour[:, 0].astype(np.float64)) for contour in contours]


def _smooth(curve: np.ndarray) -> np.ndarray:
    """A closed curve (points, 2) after a triangular filter over five points; specks keep their shape."""
    if len(curve) < _SPECK:
        return curve
    ahead, behind = np.roll(curve, -1, axis=0), np.roll(curve, 1, axis=0)
    return (3 * curve + 2 * (ahead + behind) + np.roll(curve, -2, axis=0) + np.roll(curve, 2, axis=0)) / 9


def _to_fixed_point(curve: np.ndarray, segment: Segment, scale: int) -> np.ndarray:
    """Picture coordinates of a curve at ``scale`` times the size, as OpenCV's fixed-point numbers."""
    pixel_centers = (curve + np.array([segment.left + 0.5, segment.top + 0.5])) * scale - 0.5
    return np.round(pixel_centers * 2**_SUBPIXEL_BITS).astype(np.int32)


def _draw_label(canvas: np.ndarray, label: Label, color: np.ndarray) -> None:
    """Put white text on a box in a dark shade of the segment's colour, in place."""
    area = canvas[label.top : label.top + label.height, label.left : label.left + label.width]
    box = _rounded_box(label.height, label.width)[..., None] * 0.82
    text = render_label(label)[..., None]
    mixed = area * (1 - box) + color * np.float32(0.25) * box
    area[:] = (mixed * (1 - text) + 255 * text).round()


def _rounded_box(height: int, width: int) -> np.ndarray:
    """Coverage (height, width) float32 of a box whose corners are rounded."""
    radius = 0.3 * height
    y = np.maximum(np.abs(np.arange(height) - (height - 1) / 2) - (height / 2 - radius), 0)
    x = np.maximum(np.abs(np.arange(width) - (width - 1) / 2) - (width / 2 - radius), 0)
    return np.clip(radius + 0.5 - np.hypot(y[:, None], x[None]), 0, 1).astype(np.float32)
