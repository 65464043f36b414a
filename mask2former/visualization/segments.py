"""What is drawn: segments, cut out of whole-picture masks, with their names and colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mask2former.visualization.colors import assign_colors, spread_palette

__all__ = ["Segment", "class_color", "class_name", "crop_segment", "is_thing_class", "segment_colors"]

_MIN_CLASS_COLORS = 64


@dataclass(frozen=True, eq=False)
class Segment:
    """One region of a picture.

    Attributes:
        mask: (h, w) bool, the segment within its bounding box.
        left, top: position of the box in the picture.
        class_id: contiguous id, of the thing classes or of the stuff classes.
        isthing: whether the segment is an instance, with a colour of its own, or takes the colour of its class.
        score: 0..1, where the model gives one.
    """

    mask: np.ndarray
    left: int
    top: int
    class_id: int
    isthing: bool
    score: float | None = None

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))


def crop_segment(mask: np.ndarray, class_id: int, isthing: bool, score: float | None = None) -> Segment | None:
    """Cut a whole-picture mask (H, W), bool or uint8, to its bounding box; None where it is empty."""
    mask = np.ascontiguousarray(mask)
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if width == 0:
        return None
    inside = mask[top : top + height, left : left + width] != 0
    return Segment(inside, left, top, int(class_id), bool(isthing), score)


def class_name(metadata: Any, class_id: int, isthing: bool) -> str:
    """The name of a class, or its id as text where the metadata (may be None) does not name it."""
    unnamed = str(class_id)
    names: Sequence[str] = getattr(metadata, "thing_classes" if isthing else "stuff_classes", None) or ()
    things = sorted(getattr(metadata, "thing_dataset_id_to_contiguous_id", {}).values())
    if isthing and len(names) == len(things):  # ADE20K lists the names of its things alone, whose ids have gaps
        class_id = things.index(class_id) if class_id in things else -1
    return names[class_id] if 0 <= class_id < len(names) else unnamed


def is_thing_class(metadata: Any, class_id: int) -> bool:
    """Whether a training target is a thing: things and stuff share one numbering there."""
    things = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    if things is not None:
        return class_id in things.values()
    return getattr(metadata, "thing_classes", None) is not None or getattr(metadata, "stuff_classes", None) is None


def class_color(metadata: Any, class_id: int) -> np.ndarray:
    """The colour of a stuff class: the data set's own, else one of a palette. (3,) uint8 RGB."""
    colors = getattr(metadata, "stuff_colors", None) or ()
    if 0 <= class_id < len(colors):
        return np.asarray(colors[class_id], dtype=np.uint8)
    return spread_palette(max(_MIN_CLASS_COLORS, class_id + 1))[class_id]


def segment_colors(segments: Sequence[Segment], metadata: Any) -> np.ndarray:
    """Colour stuff by its class, and instances so that neighbours differ: (N, 3) uint8 RGB."""
    colors = np.zeros((len(segments), 3), dtype=np.uint8)
    things = np.array([segment.isthing for segment in segments], dtype=bool)
    for i in np.flatnonzero(~things).tolist():
        colors[i] = class_color(metadata, segments[i].class_id)
    if things.any():
        chosen = [segments[i] for i in np.flatnonzero(things).tolist()]
        centers = np.array([(s.left + s.mask.shape[1] / 2, s.top + s.mask.shape[0] / 2) for s in chosen])
        class_ids = np.array([s.class_id for s in chosen])
        colors[things] = assign_colors(centers, class_ids, np.unique(colors[~things], axis=0))
    return colors
