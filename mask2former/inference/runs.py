"""What commands do: many pictures or frames, into files, with a progress bar."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mask2former.engine.run import INTERRUPTED
from mask2former.inference.result import Result
from mask2former.inference.result_files import ResultFiles
from mask2former.inference.segmenter import Segmenter
from mask2former.inference.video import VideoWriter

__all__ = [
    "complain",
    "print_any_name",
    "run_tool",
    "save_pictures",
    "save_video",
    "segment_frames",
    "segment_pictures",
]


def print_any_name() -> None:
    """Let stdout take names of files that it has no characters for, as stderr does, rather than end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook has another one
        sys.stdout.reconfigure(errors="backslashreplace")


def complain(message: object) -> None:
    """Write one line to stderr, above a progress bar if there is one."""
    tqdm.write(f"error: {message}", file=sys.stderr)


def run_tool(main: Callable[[], object]) -> None:
    """Run a tool's command line. One line on stderr, and exit code 1, say what the user has to mend; 130 is Ctrl-C."""
    try:
        main()
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        complain(error)
        sys.exit(1)


def segment_pictures(model: Segmenter, pictures: Sequence[Path], **options: Any) -> Iterator[Result]:
    """Segment the pictures that can be read; the others are complained about.

    Args:
        model: a trained one.
        pictures: files, each once.
        options: of :meth:`Segmenter.stream`.
    """
    results = model.stream(pictures, on_error=complain, **options)
    return iter(tqdm(results, total=len(pictures), unit="picture", disable=None))


def save_pictures(model: Segmenter, pictures: Sequence[Path], files: Sequence[ResultFiles], **options: Any) -> bool:
    """Segment pictures, each to a drawing, a JSON file and a PNG of ids.

    Args:
        model: a trained one.
        pictures: files, each once.
        files: where the result of each goes, as :func:`~mask2former.inference.result_files.plan_outputs` chooses it.
        options: of :meth:`Segmenter.stream`.

    Returns:
        Whether all of them could be read.
    """
    files_of = dict(zip(pictures, files, strict=True))
    num_segments = {}
    for result in segment_pictures(model, pictures, **options):
        if result.path is not None:  # a file's result has one
            num_segments[result.path] = result.write(files_of[result.path])
    if len(num_segments) > 10:
        folder = files[0].drawing.parent
        print(f"{len(num_segments)} pictures, {sum(num_segments.values())} segments -> {folder}/")
    else:
        for path, number in num_segments.items():
            print(f"{path.name}: {number} segments -> {files_of[path].drawing}, {files_of[path].json.name}")
    return len(num_segments) == len(pictures)


def segment_frames(model: Segmenter, video: cv2.VideoCapture, **options: Any) -> Iterator[np.ndarray]:
    """Draw every frame of a video: (H, W, 3) uint8, BGR."""
    num_frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    results = model.stream(video, **options)
    for result in tqdm(results, total=num_frames if num_frames > 0 else None, unit="frame", disable=None):
        yield np.ascontiguousarray(result.draw()[:, :, ::-1])


def save_video(model: Segmenter, video: cv2.VideoCapture, writer: VideoWriter, **options: Any) -> bool:
    """Segment a video into another, up to its end or Ctrl-C.

    Returns:
        Whether there was anything to segment.
    """
    with writer:
        try:
            for frame in segment_frames(model, video, **options):
                writer.write(frame)
        except KeyboardInterrupt:  # how one stops a camera; the file is complete up to here
            pass
    if not writer.num_frames:
        complain(f"the video has no frame that can be read; {writer.path} was not written")
        return False
    print(f"{writer.num_frames} frames -> {writer.path}")
    return True
