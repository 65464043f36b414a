"""The loops: over pictures or over frames, into files or into a window."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from inputs import Job
from predictor import VisualizationDemo
from results import save_results, write_image
from tqdm import tqdm
from video import VideoWriter

from mask2former.data.image_io import read_image

__all__ = ["complain", "save_pictures", "save_video", "show_pictures", "show_video"]

_WINDOW = "Mask2Former"
_ESCAPE = 27


def complain(message: str) -> None:
    """Write one line to stderr, above a progress bar if there is one."""
    tqdm.write(f"error: {message}", file=sys.stderr)


def save_pictures(jobs: Sequence[Job], demo: VisualizationDemo) -> bool:
    """Segment pictures, each to a drawing, a JSON file and a PNG of ids; unreadable ones are complained about.

    Returns:
        Whether all of them could be read.
    """
    num_segments = {}
    for i, predictions, drawing in _segment([job.picture for job in jobs], demo):
        job = jobs[i]
        job.drawing.parent.mkdir(parents=True, exist_ok=True)
        write_image(job.drawing, drawing)
        num_segments[job] = save_results(
            predictions, demo.task, demo.metadata, picture=job.picture, json_path=job.json, id_path=job.ids
        )
    for job, number in num_segments.items() if len(num_segments) <= 10 else ():
        print(f"{job.picture.name}: {number} segments -> {job.drawing}, {job.json.name}")
    if len(num_segments) > 10:
        print(f"{len(num_segments)} pictures, {sum(num_segments.values())} segments -> {jobs[0].drawing.parent}/")
    return len(num_segments) == len(jobs)


def show_pictures(pictures: Sequence[Path], demo: VisualizationDemo) -> bool:
    """Segment pictures and show each until a key is pressed; Escape ends.

    Returns:
        Whether all up to there could be read.
    """
    num_shown = 0
    for i, _, drawing in _segment(pictures, demo):
        num_shown += 1
        cv2.imshow(_WINDOW, drawing)
        if cv2.waitKey(0) == _ESCAPE:
            return num_shown == i + 1
    return num_shown == len(pictures)


def save_video(video: cv2.VideoCapture, writer: VideoWriter, demo: VisualizationDemo) -> bool:
    """Segment a video into another, up to its end or Ctrl-C.

    Returns:
        Whether there was anything to segment.
    """
    with writer:
        try:
            for frame in _progress(video, demo):
                writer.write(frame)
        except KeyboardInterrupt:  # how one stops a camera; the file is complete up to here
            pass
    if not writer.num_frames:
        complain(f"the video has no frame that can be read; {writer.path} was not written")
        return False
    print(f"{writer.num_frames} frames -> {writer.path}")
    return True


def show_video(video: cv2.VideoCapture, demo: VisualizationDemo) -> bool:
    """Segment a video in a window, up to its end or Escape.

    Returns:
        Whether there was anything to segment.
    """
    shown = False
    for frame in _progress(video, demo):
        shown = True
        cv2.imshow(_WINDOW, frame)
        if cv2.waitKey(1) == _ESCAPE:
            break
    return shown


def _segment(pictures: Sequence[Path], demo: VisualizationDemo) -> Iterator[tuple[int, dict[str, Any], np.ndarray]]:
    """Go through the pictures that can be read: index, the model's result and the drawing (H, W, 3) BGR."""
    for i, picture in enumerate(tqdm(pictures, unit="picture", disable=None)):
        try:
            image = read_image(picture, "BGR")
        except (OSError, ValueError) as error:
            complain(str(error))
            continue
        yield i, *demo.run_on_image(image)


def _progress(video: cv2.VideoCapture, demo: VisualizationDemo) -> Iterator[np.ndarray]:
    num_frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    return tqdm(demo.run_on_video(video), total=num_frames if num_frames > 0 else None, unit="frame", disable=None)
