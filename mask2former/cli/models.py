"""What is done with models: ``mask2former export``, ``benchmark``, ``convert``, ``demo`` and ``models``."""

import argparse
import os
import sys

from mask2former.cli.common import MODEL_ERRORS, Commands, add_model_arguments, complaining, load_model
from mask2former.home import given_path
from mask2former.inference.benchmark_command import add_benchmark_arguments, run_benchmark
from mask2former.inference.convert import FORMATS, convert_weights
from mask2former.inference.exporting import add_export_arguments, check_export_arguments, export_model
from mask2former.inference.loading import model_config
from mask2former.web import build_page
from mask2former.weights import zoo

__all__ = ["add_benchmark", "add_convert", "add_demo", "add_export", "add_models"]


def add_export(commands: Commands) -> None:
    """Add ``export``."""
    command = commands.add_parser(
        "export",
        help="write a model as ONNX, TorchScript, torch.export or AOTInductor",
        description="Write a trained model for other programs, and check the file against the model on pictures.",
    )
    add_export_arguments(command)
    add_model_arguments(command, positional=True)
    command.set_defaults(run=_export)


@complaining(*MODEL_ERRORS)
def _export(args: argparse.Namespace) -> int:
    check_export_arguments(args)
    device = ["MODEL.DEVICE", args.device] if args.device else []
    export_model(model_config(args.model, args.weights, [*device, *args.opts]), args)
    return 0


def add_benchmark(commands: Commands) -> None:
    """Add ``benchmark``."""
    command = commands.add_parser(
        "benchmark",
        help="time a model on this machine",
        description="Time a model: pictures that are read, to results of their size, and the parts of that. Where the "
        "picture is noise or the model untrained, no query is sure of anything, and post-processing has nothing to do: "
        "it then gets made-up predictions, which the table says.",
    )
    add_benchmark_arguments(command)
    add_model_arguments(command, positional=True)
    command.set_defaults(run=_benchmark)


@complaining(*MODEL_ERRORS)
def _benchmark(args: argparse.Namespace) -> int:
    run_benchmark(args)
    return 0


def add_convert(commands: Commands) -> None:
    """Add ``convert``."""
    command = commands.add_parser(
        "convert",
        help="convert weights between code bases",
        description="Convert weights between the names and files of the official release (MaskFormer and Detectron2 "
        "included), Hugging Face, torchvision, timm and Microsoft; whose names a file has is seen from the file.",
    )
    command.add_argument("source", help="a file, an address, hf://<owner>/<name>, or a name of the model zoo")
    command.add_argument(
        "target", type=given_path, help=".pth, .pkl or .safetensors; or, for Hugging Face, a folder for from_pretrained"
    )
    command.add_argument(
        "--to", choices=FORMATS, default="official", help="whose names (default: official); the last three: a backbone"
    )
    command.add_argument("--config-file", metavar="FILE", help="of the source, for a folder; default: the source's own")
    command.add_argument("--half", action="store_true", help="write float16, which is half the size")
    command.set_defaults(run=_convert)


@complaining(*MODEL_ERRORS)
def _convert(args: argparse.Namespace) -> int:
    number = convert_weights(args.source, args.target, args.to, config=args.config_file, half=args.half)
    print(f"{number} tensors -> {args.target}")
    return 0


def add_demo(commands: Commands) -> None:
    """Add ``demo``."""
    command = commands.add_parser("demo", help="a page to try a model in the browser")
    command.add_argument("--web", action="store_true", required=True, help="serve the page until Ctrl-C")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    command.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    add_model_arguments(command, default="nuclei/panoptic/Lite0")
    command.set_defaults(run=_demo)


@complaining(*MODEL_ERRORS)
def _demo(args: argparse.Namespace) -> int:
    page = build_page(load_model(args), f"Mask2Former: {args.model}")
    page.launch(server_name=args.host, server_port=args.port)
    return 0


def add_models(commands: Commands) -> None:
    """Add ``models``."""
    commands.add_parser("models", help="list the published models").set_defaults(run=_models)


def _models(args: argparse.Namespace) -> int:
    try:
        for entry in zoo().values():
            metrics = ", ".join(f"{name} {value:g}" for name, value in entry.metrics.items())
            print(f"{entry.name:40} {metrics}".rstrip())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it, such as `head`, has enough; Python would flush once more in the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
