"""Segment pictures, a video or the camera's view from the command line; see README.md beside this file."""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
from windows import show_pictures, show_video

from mask2former import Segmenter
from mask2former.inference.loading import model_config
from mask2former.inference.pictures import find_pictures
from mask2former.inference.result_files import plan_outputs, plan_video_outputs
from mask2former.inference.runs import complain, print_any_name, save_pictures, save_video
from mask2former.inference.video import VideoWriter, frame_rate, open_video

__all__ = ["get_parser", "main"]

# The model that comes with the repository: panoptic segmentation of nuclei under the microscope.
DEFAULT_MODEL = "nuclei/panoptic/Lite0"
# What it is shown where no input is given: a stained section of colon, one of scikit-image's pictures.
SAMPLE_PACKAGE, SAMPLE_FILE = "skimage", "data/ihc.png"
SAMPLE_OUTPUT = "output/demo"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Segment pictures, a video or the camera's view with Mask2Former.")
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="a configuration, or what else mask2former.load knows; default: the nuclei model of this repository",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="pictures, folders of pictures, or quoted patterns such as 'scans/**/*.tif'; default: a sample picture",
    )
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument(
        "--output", metavar="PATH", help="a folder, or a file for a single input; without it, a window shows the result"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=_probability,
        metavar="P",
        help="least score, 0 to 1, of instances (default: 0.5) and panoptic segments (default: the configuration's)",
    )
    parser.add_argument(
        "--task",
        choices=("panoptic", "instance", "semantic"),
        help="default: the first of these that the configuration turns on",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the configuration, such as MODEL.WEIGHTS model.pth MODEL.DEVICE cpu; must come last",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: arguments without the program's name; default: the process's own.

    Returns:
        The exit code: 0, or 1 where something could not be done; each such thing has one line on stderr.
    """
    args = get_parser().parse_args(argv)
    print_any_name()
    try:
        _complete(args)
        run, all_found = _plan_pictures(args) if args.input else (_plan_video(args), True)
        model = Segmenter(model_config(args.config_file, opts=args.opts))
        options = {"task": args.task, "threshold": args.confidence_threshold}
        model.check_options(**options)
        return 0 if run(model, **options) and all_found else 1
    except (OSError, ValueError) as error:  # what the command can be blamed for; the message says what to do
        complain(error)
        return 1


def _complete(args: argparse.Namespace) -> None:
    """Fill in what was not given, in place."""
    if not (args.input or args.video_input or args.webcam):
        if args.config_file:
            raise ValueError("nothing to segment: give --input, --video-input or --webcam")
        args.input = [str(_sample_picture())]
        args.output = args.output or SAMPLE_OUTPUT
    if not args.output and not _has_windows():
        raise ValueError(
            "--output is needed, a folder or a file: there is no display, or OpenCV was built without windows"
        )
    args.config_file = args.config_file or DEFAULT_MODEL


def _plan_pictures(args: argparse.Namespace) -> tuple[Callable[..., bool], bool]:
    """What to do, and whether every input stands for something."""
    pictures, complaints = find_pictures(args.input)
    for complaint in complaints:
        complain(complaint)
    if not pictures:
        raise ValueError("there is no picture to segment")
    if not args.output:
        return partial(show_pictures, pictures=pictures), not complaints
    files = plan_outputs(pictures, Path(args.output))  # complains before the model is loaded
    return partial(save_pictures, pictures=pictures, files=files), not complaints


def _plan_video(args: argparse.Namespace) -> Callable[..., bool]:
    video = open_video(0 if args.webcam else args.video_input)
    if not args.output:
        return partial(show_video, video=video)
    name = "webcam" if args.webcam else args.video_input
    (path,) = plan_video_outputs([Path(name)], Path(args.output))
    writer = VideoWriter(path, frame_rate(video))
    return partial(save_video, video=video, writer=writer)


def _sample_picture() -> Path:
    spec = importlib.util.find_spec(SAMPLE_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(f"the sample picture comes with {SAMPLE_PACKAGE}: pip install scikit-image, or give --input")
    return Path(spec.origin).parent / SAMPLE_FILE


def _has_windows() -> bool:
    display = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(display) and not re.search(r"GUI: +NONE", cv2.getBuildInformation())


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
