"""The command ``mask2former benchmark``."""

import argparse
import json
import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from mask2former.durable_files import write_file
from mask2former.export import ExportedResults, is_exported
from mask2former.home import expand_home, given_path
from mask2former.inference.benchmark import PARTS, Benchmark, cpu_name, time_models, untrained
from mask2former.inference.exported import open_exported
from mask2former.inference.loading import model_config
from mask2former.inference.pictures import open_picture
from mask2former.inference.segmenter import Segmenter
from mask2former.modeling.optimize.frequent_sizes import FREQUENT

__all__ = ["add_benchmark_arguments", "run_benchmark"]

_WARM_UP = 2
_NOISE_SIZE = (800, 1216)  # of COCO's pictures as the official models see them, about


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is timed, except for the model."""
    parser.add_argument("--image", metavar="FILE", help="a picture of yours; default: noise")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="of the picture, which the network then sees as it is; default: of --image as it is resized for testing, "
        f"of noise {_NOISE_SIZE[0]}x{_NOISE_SIZE[1]}",
    )
    parser.add_argument("--task", choices=("panoptic", "instance", "semantic"), help="default: the model's first")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="cut larger pictures into tiles of this side")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: PyTorch's own choice")
    parser.add_argument("--optimize", action="store_true", help="also time MODEL.INFERENCE.OPTIMIZE")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="also time in this type")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        default="none",
        choices=("none", "default", "reduce-overhead"),
        help="also time this MODEL.INFERENCE.COMPILE",
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="timed runs (default: 10)")
    parser.add_argument(
        "--warm-up",
        type=int,
        metavar="N",
        help=f"untimed runs before (default: {_WARM_UP}, on a GPU {FREQUENT}, the last of which records the CUDA graph "
        "of a faster model)",
    )
    parser.add_argument("--untrained", action="store_true", help="random weights, without a checkpoint")
    parser.add_argument("--json", type=given_path, metavar="FILE", help="also write the figures to this file")


def run_benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Time a model, print a table, and write it.

    Args:
        args: of :func:`add_benchmark_arguments`, and ``model``, ``weights``, ``device`` and ``opts``.

    Returns:
        What is written as JSON.

    Raises:
        FileNotFoundError: the model or the picture is not there.
        ValueError: options are out of range or do not go together.
    """
    if args.rounds < 1 or (args.warm_up is not None and args.warm_up < 0):
        raise ValueError(f"--rounds is {args.rounds} and --warm-up {args.warm_up}; expected at least 1 and 0.")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    models = _load_models(args)
    first = next(iter(models.values()))
    benchmark = _plan(args, first)
    for model in models.values():
        model.check_options(**benchmark.options)
    seconds = time_models(models, benchmark)
    device: str = first.cfg.MODEL.DEVICE
    results = {
        "model": str(args.model),
        "file": is_exported(expand_home(args.model)),
        "picture": {"path": args.image, "size": list(benchmark.picture.shape[:2])},
        "options": {**benchmark.options, "rounds": benchmark.rounds, "warm_up": benchmark.warm_up},
        "predictions": _describe_predictions(benchmark, first),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "seconds": seconds,
    }
    print(_table(results))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_file(args.json, f"{json.dumps(results, indent=2)}\n".encode())
    return results


def _load_models(args: argparse.Namespace) -> dict[str, Segmenter]:
    """The plain model, and a faster one if it is asked for."""
    faster = args.optimize or args.dtype != "float32" or args.compile != "none"
    if is_exported(path := expand_home(args.model)):
        if faster or args.untrained or args.weights or args.opts:
            raise ValueError(
                f"{path} is an exported file, which is timed as it is; leave --optimize, --dtype, --compile, "
                "--untrained, --weights and --opts out."
            )
        return {path.name: open_exported(path, args.device)}
    base = ["MODEL.INFERENCE.OPTIMIZE", "False", *(["MODEL.DEVICE", args.device] if args.device else [])]
    ways: dict[str, list[str]] = {"plain": []}
    if faster:
        words = ["MODEL.INFERENCE.OPTIMIZE", "True", "MODEL.INFERENCE.DTYPE", args.dtype]
        ways[_name(args)] = [*words, "MODEL.INFERENCE.COMPILE", args.compile]
    build = untrained if args.untrained else Segmenter
    return {
        name: build(model_config(args.model, args.weights, [*base, *args.opts, *words])) for name, words in ways.items()
    }


def _name(args: argparse.Namespace) -> str:
    compiled = {"none": "", "default": "compiled", "reduce-overhead": "compiled, CUDA graphs"}[args.compile]
    return ", ".join(word for word in ("optimized", args.dtype.removeprefix("float32"), compiled) if word)


def _plan(args: argparse.Namespace, model: Segmenter) -> Benchmark:
    tasks = (args.task,) if args.task else model.default_tasks
    warm_up = FREQUENT if model.cfg.MODEL.DEVICE.startswith("cuda") else _WARM_UP
    options: dict[str, Any] = {"task": tasks, "batch_size": args.batch, "tile": args.tile}
    if args.image is None:
        size = args.size or _NOISE_SIZE
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    else:
        picture = open_picture(args.image).image
        if args.size:
            picture = np.asarray(Image.fromarray(picture).resize(args.size[::-1]))
    if args.size or args.image is None:
        options["size"] = 0
    return Benchmark(
        options=options,
        picture=picture,
        own_predictions=isinstance(model.model, ExportedResults) or not (args.untrained or args.image is None),
        rounds=args.rounds,
        warm_up=warm_up if args.warm_up is None else args.warm_up,
    )


def _describe_predictions(benchmark: Benchmark, model: Segmenter) -> str:
    """What post-processing has to do, which its time depends on."""
    if isinstance(model.model, ExportedResults):
        return "of the file, whose network does post-processing too"
    if benchmark.own_predictions:
        return "the model's own"
    return "made up: of every four queries one is sure, since noise or random weights give none"


def _table(results: dict[str, Any]) -> str:
    height, width = results["picture"]["size"]
    options, seconds = results["options"], results["seconds"]
    first = next(iter(seconds.values()))["whole picture"]
    rows = [
        [name, *(f"{1000 * parts[part]:.1f}" for part in PARTS), f"{first / parts['whole picture']:.2f}"]
        for name, parts in seconds.items()
    ]
    lines = [
        f"{results['model']}: {results['picture']['path'] or 'noise'}, {width} x {height} pixels, task "
        f"{' and '.join(options['task'])}, {options['batch_size']} at a time, predictions {results['predictions']}",
        f"{results['gpu'] or results['processor']}, {results['threads']} threads, torch {results['torch']}; medians of "
        f"{options['rounds']} rounds, milliseconds a picture",
        "",
        tabulate(rows, headers=["", *PARTS, "times as fast"], tablefmt="github", disable_numparse=True),
    ]
    return "\n".join(lines)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width, such as 800x1216")
    return int(match[1]), int(match[2])
