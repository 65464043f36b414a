"""The official demo's class, on top of ``mask2former.Segmenter``, for programs that were written for it."""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from mask2former import Segmenter
from mask2former.inference.video import read_frames
from mask2former.visualization import Task

__all__ = ["Drawing", "VisualizationDemo"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture with its segments, to be used as Detectron2's ``VisImage``.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
    """

    pixels: np.ndarray

    def get_image(self) -> np.ndarray:
        """The pixels."""
        return self.pixels

    def save(self, filepath: str | Path) -> None:
        """Write it, in the format that the name says."""
        Image.fromarray(self.pixels).save(filepath)


class VisualizationDemo:
    """A model that draws what it sees. Pictures come and go as in OpenCV: (H, W, 3) uint8, BGR."""

    def __init__(
        self,
        cfg: CfgNode,
        instance_mode: Any = None,
        parallel: bool = False,
        *,
        task: Task | None = None,
        threshold: float | None = None,
    ) -> None:
        """
        Args:
            cfg: of the model; ``MODEL.WEIGHTS`` must name a checkpoint of the whole model.
            instance_mode: official and not read, like the next: drawings have one style, and one process makes them.
            parallel: likewise.
            task: as in :meth:`mask2former.Segmenter.predict`, like ``threshold``.
            threshold: likewise.
        """
        self.model = Segmenter(cfg)
        self.metadata = self.model.metadata
        self._options: dict[str, Any] = {"task": task, "threshold": threshold}

    def run_on_image(self, image: np.ndarray) -> tuple[Mapping[str, Any], Drawing]:
        """Segment and draw one picture.

        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            The model's result, of which instances are those at or above the threshold; and the drawing.
        """
        result = self.model.predict(image[:, :, ::-1], **self._options)
        return result.predictions, Drawing(result.draw())

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
