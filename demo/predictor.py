"""The official demo's class, on top of ``mask2former.Segmenter``, for programs that were written for it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode

from mask2former import Segmenter
from mask2former.inference.video import read_frames
from mask2former.visualization import Task

__all__ = ["VisualizationDemo"]


class VisualizationDemo:
    """A model that draws what it sees. Pictures come and go as in OpenCV: (H, W, 3) uint8, BGR."""

    def __init__(self, cfg: CfgNode, *, task: Task | None = None, threshold: float | None = None) -> None:
        """
        Args:
            cfg: of the model; ``MODEL.WEIGHTS`` must name a checkpoint of the whole model.
            task: as in :meth:`mask2former.Segmenter.predict`, like ``threshold``.
            threshold: likewise.
        """
        self.model = Segmenter(cfg)
        self.metadata = self.model.metadata
        self._options: dict[str, Any] = {"task": task, "threshold": threshold}

    def run_on_image(self, image: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray]:
        """Segment and draw one picture.

        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            The model's result, of which instances are those at or above the threshold; and the drawing, (H, W, 3) BGR.
        """
        result = self.model.predict(image[:, :, ::-1], **self._options)
        return result.predictions, np.ascontiguousarray(result.draw()[:, :, ::-1])

    def run_on_video(self, video: cv2.VideoCapture | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Draw every frame of a video. The next frames are read and resized while the model works on this one.

        Args:
            video: an open capture, or frames (H, W, 3) uint8 BGR.

        Yields:
            Drawn frames (H, W, 3) uint8, BGR.
        """
        frames = video if isinstance(video, Iterable) else read_frames(video)
        for result in self.model.stream((frame[:, :, ::-1] for frame in frames), **self._options):
            yield np.ascontiguousarray(result.draw()[:, :, ::-1])
