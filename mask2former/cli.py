"""The command ``mask2former``: segment, train, evaluate, export and time, look at data, convert weights, try models."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import default_argument_parser

from mask2former.api import load
from mask2former.engine.browse import browse, for_data_sets
from mask2former.engine.launch import check_num_gpus
from mask2former.engine.run import run
from mask2former.engine.setup import load_config
from mask2former.inference import Segmenter
from mask2former.inference.benchmark_command import add_benchmark_arguments, run_benchmark
from mask2former.inference.convert import FORMATS, convert_weights
from mask2former.inference.exporting import add_export_arguments, check_export_arguments, export_model
from mask2former.inference.loading import model_config
from mask2former.inference.pictures import find_pictures
from mask2former.inference.result_files import make_folder, plan_outputs, plan_video_outputs
from mask2former.inference.runs import complain, save_pictures, save_video
from mask2former.inference.video import VideoWriter, frame_rate, is_video, open_video
from mask2former.own_data.command import (
    add_data_arguments,
    add_training_arguments,
    check_needs_data,
    inspect_data,
    prepare_training,
    train_and_report,
)
from mask2former.web import build_page
from mask2former.weights import zoo

__all__ = ["get_parser", "main"]

_Command = Callable[[argparse.Namespace], int]
# Of data and settings: all that is wrong with them, and that needs no traceback.
_DATA_ERRORS = (OSError, ValueError, KeyError)


def _complaining(*errors: type[Exception]) -> Callable[[_Command], _Command]:
    """Let a command end with exit code 1 and one line on stderr at these errors."""

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def run_command(args: argparse.Namespace) -> int:
            try:
                return command(args)
            except errors as error:
                complain(error.args[0] if isinstance(error, KeyError) else error)
                return 1

        return run_command

    return decorate


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="mask2former", description="Segment pictures with Mask2Former, or train it.")
    # As long as the longest command and its indentation, or argparse breaks that line.
    commands = parser.add_subparsers(title="commands", required=True, metavar="SUB-COMMAND")
    _add_predict(commands)
    for name, eval_only, text in (
        ("train", False, "train a model, on your own data with --data"),
        ("eval", True, "evaluate a model"),
    ):
        command = commands.add_parser(
            name, help=text, parents=[default_argument_parser(epilog=" ")], conflict_handler="resolve"
        )
        command.set_defaults(run=_train, eval_only=eval_only, data=None)
        if not eval_only:
            add_data_arguments(command, required=False)
            add_training_arguments(command)
    inspect = commands.add_parser("inspect", help="check your own data and tell what they hold")
    add_data_arguments(inspect, required=True)
    inspect.set_defaults(run=_inspect)
    _add_browse(commands)
    _add_export(commands)
    _add_benchmark(commands)
    _add_convert(commands)
    _add_demo(commands)
    commands.add_parser("models", help="list the published models").set_defaults(run=_models)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; default: the process's own.

    Returns:
        The exit code: 0, or 1 where something could not be done; each such thing has one line on stderr.
    """
    args = get_parser().parse_args(argv)
    result: int = args.run(args)
    return result


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("predict", help="segment pictures and videos")
    command.add_argument(
        "input", nargs="+", help="pictures, folders of pictures, quoted patterns such as 'scans/**/*.tif', or videos"
    )
    command.add_argument("--output", required=True, metavar="PATH", help="a folder, or the file of a single drawing")
    command.add_argument("--task", choices=("panoptic", "instance", "semantic"), help="default: the model's first")
    command.add_argument("--threshold", type=float, metavar="P", help="least score, 0 to 1, of what is kept")
    command.add_argument("--size", type=int, metavar="PIXELS", help="of the shorter edge, as the network sees it")
    command.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    command.add_argument(
        "--tile", type=int, metavar="PIXELS", help="cut larger pictures into tiles of this side, a multiple of 32"
    )
    command.add_argument("--tile-overlap", type=int, metavar="PIXELS", help="of tiles (default: a quarter of --tile)")
    _add_model_arguments(command)
    command.set_defaults(run=_predict)


def _add_model_arguments(
    command: argparse.ArgumentParser, default: str | None = None, *, positional: bool = False
) -> None:
    """Add what says which model; required where there is no default."""
    options: dict[str, Any] = {} if positional else {"required": default is None, "default": default}
    command.add_argument(
        "model" if positional else "--model",
        **options,
        help="a name that `mask2former models` lists, a configuration, a training's output folder, a Hugging Face "
        "folder or repository, or an exported file" + ("" if default is None else f" (default: {default})"),
    )
    command.add_argument("--weights", metavar="FILE", help="a checkpoint to take instead of the model's own")
    command.add_argument("--device", help="such as cpu or cuda:1; default: the GPU if there is one")
    command.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration keys; must come last"
    )


def _load_model(args: argparse.Namespace) -> Segmenter:
    return load(args.model, args.weights, device=args.device, opts=args.opts)


@_complaining(OSError, ValueError, ModuleNotFoundError)
def _predict(args: argparse.Namespace) -> int:
    """Segment what can be read; 0 if that is all."""
    output = Path(args.output)
    names = ("task", "threshold", "size", "batch_size", "tile", "tile_overlap")
    options = {name: getattr(args, name) for name in names}
    videos = [given for given in args.input if is_video(given)]
    pictures, complaints = find_pictures([given for given in args.input if given not in videos])
    for complaint in complaints:
        complain(complaint)
    # What is wrong with the output is told before the model is loaded.
    planned = [files.drawing for files in plan_outputs(pictures, output)]
    films = plan_video_outputs([Path(given) for given in videos], output)
    folders = {path.parent for path in (*planned, *films)}
    if folders & set(films):
        raise ValueError(f"{output} is one file, but there are pictures and a video; give a folder as --output")
    for folder in folders:
        make_folder(folder)
    opened = [open_video(video) for video in videos]
    writers = [VideoWriter(path, frame_rate(video)) for path, video in zip(films, opened, strict=True)]
    model = _load_model(args)
    model.check_options(**options)
    done = not complaints
    if pictures:
        done &= save_pictures(model, pictures, output, **options)
    for video, writer in zip(opened, writers, strict=True):
        done &= save_video(model, video, writer, **options)
    return 0 if done else 1


def _train(args: argparse.Namespace) -> int:
    if args.data is not None:
        if failed := _prepare_training(args):
            return failed
        train_and_report(args)
        return 0
    if failed := _check_without_data(args):
        return failed
    return _run(args)


@_complaining(FileNotFoundError)  # weights and data; what else goes wrong needs its traceback
def _run(args: argparse.Namespace) -> int:
    run(args)
    return 0


@_complaining(*_DATA_ERRORS)
def _prepare_training(args: argparse.Namespace) -> int:
    return prepare_training(args)


@_complaining(OSError, ValueError)
def _check_without_data(args: argparse.Namespace) -> int:
    if not args.eval_only:
        check_needs_data(args)
    if not args.config_file:
        raise ValueError("say what to run: --config-file FILE" + ("" if args.eval_only else ", or --data PATH") + ".")
    check_num_gpus(args.num_gpus)
    load_config(args.config_file, args.opts)
    return 0


@_complaining(*_DATA_ERRORS)
def _inspect(args: argparse.Namespace) -> int:
    return inspect_data(args)


def _add_browse(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "browse",
        help="draw the ground truth of a data set",
        description="Draw ground truth as the model is trained with it: after the augmentations of the configuration's "
        "dataset mapper.",
    )
    command.add_argument("--config-file", required=True, metavar="FILE")
    command.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    command.add_argument("--split", choices=("train", "test"), default="train", help="DATASETS.TRAIN (default) or TEST")
    command.add_argument("--dataset", metavar="NAME", help="a registered data set in place of the configuration's")
    command.add_argument("--number", type=int, default=16, metavar="N", help="of pictures, at random (default: 16)")
    command.add_argument("--seed", type=int, default=0, help="of the choice and the augmentations (default: 0)")
    command.add_argument("--no-augmentation", action="store_true", help="draw the pictures as they are")
    command.add_argument("--sheet", action="store_true", help="also write all of them on one page, sheet.jpg")
    command.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="keys of the configuration")
    command.set_defaults(run=_browse)


@_complaining(OSError, ValueError)
def _browse(args: argparse.Namespace) -> int:
    cfg = load_config(args.config_file, args.opts)
    names = (args.dataset,) if args.dataset else cfg.DATASETS[args.split.upper()]
    done = browse(
        for_data_sets(cfg, names),
        args.output,
        number=args.number,
        seed=args.seed,
        augment=not args.no_augmentation,
        sheet=args.sheet,
    )
    return 0 if done else 1


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "export",
        help="write a model as ONNX, TorchScript, torch.export or AOTInductor",
        description="Write a trained model for other programs, and check the file against the model on pictures.",
    )
    add_export_arguments(command)
    _add_model_arguments(command, positional=True)
    command.set_defaults(run=_export)


@_complaining(OSError, ValueError, ModuleNotFoundError)
def _export(args: argparse.Namespace) -> int:
    check_export_arguments(args)
    device = ["MODEL.DEVICE", args.device] if args.device else []
    export_model(model_config(args.model, args.weights, [*device, *args.opts]), args)
    return 0


def _add_benchmark(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "benchmark",
        help="time a model on this machine",
        description="Time a model: pictures that are read, to results of their size, and the parts of that. Where the "
        "picture is noise or the model untrained, no query is sure of anything, and post-processing has nothing to do: "
        "it then gets made-up predictions, which the table says.",
    )
    add_benchmark_arguments(command)
    _add_model_arguments(command, positional=True)
    command.set_defaults(run=_benchmark)


@_complaining(OSError, ValueError, ModuleNotFoundError)
def _benchmark(args: argparse.Namespace) -> int:
    run_benchmark(args)
    return 0


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "convert",
        help="convert weights between code bases",
        description="Convert weights between the names and files of the official release (MaskFormer and Detectron2 "
        "included), Hugging Face, torchvision, timm and Microsoft; whose names a file has is seen from the file.",
    )
    command.add_argument("source", help="a file, an address, hf://<owner>/<name>, or a name of the model zoo")
    command.add_argument(
        "target", type=Path, help=".pth, .pkl or .safetensors; or, for Hugging Face, a folder for from_pretrained"
    )
    command.add_argument(
        "--to", choices=FORMATS, default="official", help="whose names (default: official); the last three: a backbone"
    )
    command.add_argument("--config-file", metavar="FILE", help="of the source, for a folder; default: the source's own")
    command.add_argument("--half", action="store_true", help="write float16, which is half the size")
    command.set_defaults(run=_convert)


@_complaining(OSError, ValueError, ModuleNotFoundError)
def _convert(args: argparse.Namespace) -> int:
    number = convert_weights(args.source, args.target, args.to, config=args.config_file, half=args.half)
    print(f"{number} tensors -> {args.target}")
    return 0


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("demo", help="a page to try a model in the browser")
    command.add_argument("--web", action="store_true", required=True, help="serve the page until Ctrl-C")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    command.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    _add_model_arguments(command, default="nuclei/panoptic/Lite0")
    command.set_defaults(run=_demo)


@_complaining(OSError, ValueError, ModuleNotFoundError)
def _demo(args: argparse.Namespace) -> int:
    page = build_page(_load_model(args), f"Mask2Former: {args.model}")
    page.launch(server_name=args.host, server_port=args.port)
    return 0


def _models(args: argparse.Namespace) -> int:
    for entry in zoo().values():
        metrics = ", ".join(f"{name} {value:g}" for name, value in entry.metrics.items())
        print(f"{entry.name:40} {metrics}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
