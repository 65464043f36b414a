"""``mask2former predict``."""

import argparse
from pathlib import Path

from mask2former.cli.common import MODEL_ERRORS, Commands, add_model_arguments, complaining, load_model
from mask2former.home import expand_home, given_path
from mask2former.inference.pictures import find_pictures
from mask2former.inference.result_files import make_folder, plan_outputs, plan_video_outputs
from mask2former.inference.runs import complain, save_pictures, save_video
from mask2former.inference.video import VideoWriter, frame_rate, is_video, open_video

__all__ = ["add_predict"]


def add_predict(commands: Commands) -> None:
    """Add ``predict``."""
    command = commands.add_parser("predict", help="segment pictures and videos")
    command.add_argument(
        "input", nargs="+", help="pictures, folders of pictures, quoted patterns such as 'scans/**/*.tif', or videos"
    )
    command.add_argument(
        "--output", required=True, type=given_path, metavar="PATH", help="a folder, or the file of a single drawing"
    )
    command.add_argument("--task", choices=("panoptic", "instance", "semantic"), help="default: the model's first")
    command.add_argument("--threshold", type=float, metavar="P", help="least score, 0 to 1, of what is kept")
    command.add_argument("--size", type=int, metavar="PIXELS", help="of the shorter edge, as the network sees it")
    command.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    command.add_argument(
        "--tile", type=int, metavar="PIXELS", help="cut larger pictures into tiles of this side, a multiple of 32"
    )
    command.add_argument("--tile-overlap", type=int, metavar="PIXELS", help="of tiles (default: a quarter of --tile)")
    add_model_arguments(command)
    command.set_defaults(run=_predict)


@complaining(*MODEL_ERRORS)
def _predict(args: argparse.Namespace) -> int:
    """Segment what can be read; 0 if that is all."""
    output = expand_home(args.output)
    names = ("task", "threshold", "size", "batch_size", "tile", "tile_overlap")
    options = {name: getattr(args, name) for name in names}
    videos = list(dict.fromkeys(given for given in args.input if is_video(given)))
    pictures, complaints = find_pictures([given for given in args.input if not is_video(given)])
    for complaint in complaints:
        complain(complaint)
    # What is wrong with the output is told before the model is loaded.
    planned = plan_outputs(pictures, output)
    films = plan_video_outputs([Path(video) for video in videos], output)
    folders = {path.parent for path in (*(files.drawing for files in planned), *films)}
    if folders & set(films):
        raise ValueError(f"{output} is one file, but there are pictures and a video; give a folder as --output")
    for folder in folders:
        make_folder(folder)
    writers = []
    for path, video in zip(films, map(open_video, videos), strict=True):
        writers.append(VideoWriter(path, frame_rate(video)))
        video.release()  # each open one has threads of its own
    model = load_model(args)
    model.check_options(**options)
    done = not complaints
    if pictures:
        done &= save_pictures(model, pictures, planned, **options)
    for video, writer in zip(map(open_video, videos), writers, strict=True):
        done &= save_video(model, video, writer, **options)
        video.release()
    return 0 if done else 1
