"""Text on pictures: where a label goes, whether it goes anywhere, and how it is rendered."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import ImageFont

from mask2former.visualization.segments import Segment

__all__ = ["Label", "place_labels", "render_label"]

_MIN_FONT_SIZE = 9
# Where all labels would hide more than this share of the picture, those that do not fit their segment are left out.
_MAX_COVERED = 0.08


@dataclass(frozen=True)
class Label:
    """A text in a box; left, top, width and height of the box are in pixels of the picture."""

    text: str
    font_size: int
    left: int
    top: int
    width: int
    height: int

    def overlaps(self, other: "Label") -> bool:
        """Whether the two boxes have a pixel in common."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


def place_labels(segments: Sequence[Segment], texts: Sequence[str], height: int, width: int) -> list[Label | None]:
    """Give a label to every segment that has room for one.

    A label sits at the centre of the segment's largest inscribed circle or, if that is taken or would be hidden, beside
    it or right outside the segment. Large segments choose first. No two labels overlap.

    Args:
        segments: N of them.
        texts: N.
        height, width: of the picture.

    Returns:
        N labels; None for a segment that stays without.
    """
    labels: list[Label | None] = [None] * len(segments)
    base_size = max(_MIN_FONT_SIZE + 1, round(0.023 * (height * width) ** 0.5))
    boxes = [_box_size(text, base_size) for text in texts]
    crowded = sum(w * h for w, h in boxes) > _MAX_COVERED * height * width
    for i in sorted(range(len(segments)), key=lambda i: -segments[i].area):
        placed = [label for label in labels if label is not None]
        for label in _candidates(segments[i], texts[i], base_size, crowded):
            inside = 0 <= label.left <= width - label.width and 0 <= label.top <= height - label.height
            if inside and not any(label.overlaps(other) for other in placed):
                labels[i] = label
                break
    return labels


def render_label(label: Label) -> np.ndarray:
    """Coverage of the label's glyphs: (label.height, label.width) float32 in 0..1."""
    text = _font(label.font_size).getmask(label.text, mode="L")
    glyphs = np.asarray(text, dtype=np.float32).reshape(text.size[::-1]) / 255
    coverage = np.zeros((label.height, label.width), dtype=np.float32)
    left, top = (label.width - glyphs.shape[1]) // 2, (label.height - glyphs.shape[0]) // 2
    coverage[top : top + glyphs.shape[0], left : left + glyphs.shape[1]] = glyphs
    return coverage


def _candidates(segment: Segment, text: str, base_size: int, crowded: bool) -> list[Label]:
    """Labels for one segment, the best first."""
    radius, x, y = _largest_circle(segment.mask)
    x, y = x + segment.left, y + segment.top
    size = _font_size(text, base_size, radius)
    width, height = _box_size(text, size)
    centers: list[tuple[float, float]] = [(x, y), (x, y - height), (x, y + height)]
    if width > (2.0 if crowded else 2.5) * radius:
        if crowded or not segment.isthing:
            return []
        middle, bottom = segment.left + segment.mask.shape[1] / 2, segment.top + segment.mask.shape[0]
        outside = [(middle, segment.top - height / 2 - 1), (middle, bottom + height / 2 + 1)]
        hides_segment = width * height > 0.4 * segment.area
        centers = outside + centers if hides_segment else centers + outside
    return [Label(text, size, round(cx - width / 2), round(cy - height / 2), width, height) for cx, cy in centers]


def _largest_circle(mask: np.ndarray) -> tuple[float, int, int]:
    """Radius and centre (x, y) of the largest circle in a mask (h, w), whose outside counts as background."""
    padded = np.pad(mask.view(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)
    _, radius, _, (x, y) = cv2.minMaxLoc(distance)
    return radius, x - 1, y - 1


def _font_size(text: str, base_size: int, radius: float) -> int:
    """The usual size, or a smaller one where that makes the text fit into the circle."""
    width, _ = _box_size(text, base_size)
    fitting = base_size * min(1.0, 2 * radius / width)
    return max(_MIN_FONT_SIZE, round(0.7 * base_size), int(fitting))


@lru_cache(maxsize=1024)
def _box_size(text: str, size: int) -> tuple[int, int]:
    """Width and height of a label's box. The height is the same for all texts of one size."""
    font = _font(size)
    padding = max(2, round(0.28 * size))
    text_width, _ = font.getmask(text).size
    _, full_height = font.getmask("Ågjp").size
    return text_width + 2 * padding, full_height + padding


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font, which is there wherever Pillow is."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; install a Pillow >= 10.1 wheel to draw labels")
    return font
