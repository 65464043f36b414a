"""Results in a window."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from mask2former.inference import Segmenter
from mask2former.inference.runs import segment_frames, segment_pictures

__all__ = ["show_pictures", "show_video"]

_WINDOW = "Mask2Former"
_ESCAPE = 27


def show_pictures(model: Segmenter, pictures: Sequence[Path], **options: Any) -> bool:
    """Segment pictures and show each until a key is pressed; Escape ends.

    Returns:
        Whether all up to there could be read.
    """
    num_shown = 0
    for result in segment_pictures(model, pictures, **options):
        num_shown += 1
        cv2.imshow(_WINDOW, result.draw()[:, :, ::-1].copy())
        if cv2.waitKey(0) == _ESCAPE:
            return result.path == pictures[num_shown - 1]
    return num_shown == len(pictures)


def show_video(model: Segmenter, video: cv2.VideoCapture, **options: Any) -> bool:
    """Segment a video in a window, up to its end or Escape.

    Returns:
        Whether there was anything to segment.
    """
    shown = False
    for frame in segment_frames(model, video, **options):
        shown = True
        cv2.imshow(_WINDOW, frame)
        if cv2.waitKey(1) == _ESCAPE:
            break
    return shown
