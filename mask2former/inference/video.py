"""Frames in, frames out."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import cv2
import numpy as np

from mask2former.home import expand_home

__all__ = ["VideoWriter", "frame_rate", "is_video", "open_video", "prefetch", "read_frames"]

_Item = TypeVar("_Item")
_DEFAULT_RATE = 25.0  # cameras often do not say
_VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
_CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}


def is_video(source: Any) -> bool:
    """Whether a source is a camera (its number), an open capture, an address, or a file that is named as videos are."""
    if isinstance(source, str | Path):
        return "://" in str(source) or Path(source).suffix.lower() in _VIDEO_SUFFIXES
    return isinstance(source, int | cv2.VideoCapture)


def open_video(source: str | int) -> cv2.VideoCapture:
    """Open a file, an address or a camera (its number).

    Raises:
        ValueError: OpenCV cannot read it.
    """
    if isinstance(source, str):
        _check_name(source)
        source = source if "://" in source else str(expand_home(source))
    video = cv2.VideoCapture(source)
    if not video.isOpened():
        what = f"camera {source}" if isinstance(source, int) else source
        raise ValueError(f"{what}: cannot be opened as a video; check that it exists and that OpenCV can decode it")
    return video


def frame_rate(video: cv2.VideoCapture) -> float:
    """Frames in a second, or 25 where the video does not say."""
    rate = video.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and rate > 0 else _DEFAULT_RATE


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames of a video to its end: (H, W, 3) uint8, BGR."""
    while True:
        success, frame = video.read()
        if not success:
            return
        yield frame


def prefetch(items: Iterable[_Item], depth: int = 4) -> Iterator[_Item]:
    """Go through ``items`` in a thread, at most ``depth`` ahead of the caller; errors arrive in their turn."""
    iterator = iter(items)
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        pending = deque(executor.submit(_take, iterator) for _ in range(depth))
        while item := pending.popleft().result():
            pending.append(executor.submit(_take, iterator))
            yield item[0]
    finally:  # also when the caller stops early
        executor.shutdown(cancel_futures=True)


def _take(iterator: Iterator[_Item]) -> tuple[_Item] | None:
    """The next item, wrapped; None at the end."""
    for item in iterator:
        return (item,)
    return None


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:  # at which OpenCV crashes
        raise ValueError(f"{name}: the name of a video must be text in UTF-8; rename it") from error


class VideoWriter:
    """Writes frames of one size to a file; a context manager, which raises an ``OSError`` where frames were lost."""

    def __init__(self, path: Path, rate: float) -> None:
        """
        Args:
            path: ``.mp4``, ``.mkv``, ``.mov`` or ``.avi``.
            rate: frames in a second.
        """
        if path.suffix.lower() not in _CODECS:
            raise ValueError(f"{path}: cannot write a video of type {path.suffix!r}, only {', '.join(_CODECS)}")
        _check_name(str(path))
        self.path = path
        self.num_frames = 0
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8, BGR; the first one fixes the size."""
        if self._writer is None:
            self._writer = self._open(frame.shape[1], frame.shape[0])
        self._writer.write(frame)
        self.num_frames += 1

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self.path), codec, self._rate, (width, height))
        if not writer.isOpened():
            raise ValueError(f"{self.path}: OpenCV cannot write {width} x {height} video there; try .avi")
        return writer

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if error is None:
            self._check()

    def _check(self) -> None:
        """OpenCV tells nobody what it could not write, and a file's header may count what is not there."""
        written = cv2.VideoCapture(str(self.path))
        count = written.get(cv2.CAP_PROP_FRAME_COUNT)
        written.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
        if count < 0.99 * self.num_frames or not written.grab():  # some formats have a length in seconds alone
            raise OSError(
                f"{self.path}: not all of its {self.num_frames} frames could be written; make space on the disk, and "
                "give all of them one size."
            )
