"""The commands ``mask2former inspect`` and ``mask2former train --data``."""

import argparse
import os
from pathlib import Path

from detectron2.engine import default_argument_parser
from tabulate import tabulate

from mask2former.data.datasets.entry import FORMATS
from mask2former.data.datasets.faults import list_faults
from mask2former.engine.launch import check_num_gpus, is_first_process
from mask2former.engine.run import run
from mask2former.engine.wandb_logger import import_wandb
from mask2former.home import given_path
from mask2former.own_data.base import find_base
from mask2former.own_data.data import OwnData, read_own_data
from mask2former.own_data.prepare import CONFIG_FILE, prepare_output, read_inspection
from mask2former.own_data.report import write_report
from mask2former.own_data.source import Given

__all__ = [
    "add_data_arguments",
    "add_training_arguments",
    "check_needs_data",
    "inspect_data",
    "prepare_training",
    "train_and_report",
]

_DATA_OPTIONS = (
    "format",
    "images",
    "segments",
    "classes",
    "things",
    "val_data",
    "val_images",
    "val_segments",
    "skip_bad",
)
_TRAINING_OPTIONS = ("weights", "output", "patience", "wandb")


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add what says where the data are."""
    data = parser.add_argument_group("your own data")
    data.add_argument(
        "--data",
        type=given_path,
        required=required,
        metavar="PATH",
        help="annotations: a COCO JSON (instances or panoptic), YOLO's data.yaml, a folder of Labelme's files, of "
        "YOLO's labels or of PNGs, or a zip of one of these",
    )
    data.add_argument("--format", choices=FORMATS, help="of the annotations; default: found out")
    data.add_argument("--images", type=given_path, metavar="DIR", help="pictures; default: where they usually are")
    data.add_argument(
        "--segments", type=given_path, metavar="DIR", help="PNGs of a COCO panoptic JSON, if not beside it"
    )
    data.add_argument(
        "--classes", type=given_path, metavar="FILE", help="names, one a line, or a table of names and colours"
    )
    data.add_argument(
        "--things", type=_names, default=(), metavar="A,B", help="classes that PNGs of instances tell apart"
    )
    data.add_argument("--val-data", type=given_path, metavar="PATH", help="annotations to validate with")
    data.add_argument("--val-images", type=given_path, metavar="DIR", help="their pictures")
    data.add_argument("--val-segments", type=given_path, metavar="DIR", help="their PNGs, as --segments")
    data.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="share of the pictures to validate with where nothing else names some (default: %(default)s)",
    )
    data.add_argument("--skip-bad", action="store_true", help="leave out what is wrong, and list it")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only a training needs."""
    training = parser.add_argument_group("training on your own data")
    training.add_argument("--weights", metavar="MODEL", help="to start from: a name of the zoo, or a checkpoint")
    training.add_argument(
        "--output", type=given_path, metavar="DIR", help="new folder for everything (default: output/own)"
    )
    training.add_argument(
        "--patience", type=int, default=0, metavar="N", help="stop after N evaluations without gain (default: never)"
    )
    training.add_argument("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases as well")


def check_needs_data(args: argparse.Namespace) -> None:
    """Raise ValueError if something is said about data of one's own, but not where they are."""
    for name in (*_DATA_OPTIONS, *_TRAINING_OPTIONS):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} says something about --data, which is not given.")


def inspect_data(args: argparse.Namespace) -> int:
    """Print what the data hold; 1 if something is wrong with them."""
    data = _read(args, skip_bad=True)
    _print_data(data)
    return 1 if data.faults and not args.skip_bad else 0


def prepare_training(args: argparse.Namespace) -> int:
    """Read the data, choose settings and write both into the output folder, before a step is spent.

    Raises:
        OSError, ValueError, KeyError: Of the data, the weights or the settings.
    """
    output = _output(args)
    if args.resume and (output / CONFIG_FILE).is_file():
        print(f"Resuming from {output / CONFIG_FILE}; data and settings stay as they were.")
        return 0
    _check(args, output)
    base = find_base(args.weights, args.config_file)
    data = _read(args, skip_bad=args.skip_bad)
    _print_data(data)
    opts = [*(["LOGGING.WANDB.PROJECT", args.wandb] if args.wandb else []), *args.opts]
    choices = prepare_output(output, data, base, opts, processes=args.num_gpus, patience=args.patience)
    rows = [(choice.key, choice.value, choice.reason) for choice in choices if choice.key != "DATASETS.CUSTOM"]
    print(f"Settings, in {output / CONFIG_FILE}:\n\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}\n")
    return 0


def train_and_report(args: argparse.Namespace) -> None:
    """Train what :func:`prepare_training` has prepared, and write the report."""
    output = _output(args)
    words = ["--config-file", str(output / CONFIG_FILE), *(["--resume"] if args.resume else [])]
    job = default_argument_parser().parse_args([*words, *(args.opts if args.resume else [])])
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        setattr(job, name, getattr(args, name))
    run(job)
    if is_first_process(args.machine_rank):
        print(f"The report: {write_report(output)}")
        known = read_inspection(output)
        if known and known["left_out"]:
            print("\n  ".join(["Left out of the data, by --skip-bad:", *known["left_out"]]))


def _output(args: argparse.Namespace) -> Path:
    return args.output or Path("output/own")


def _check(args: argparse.Namespace, output: Path) -> None:
    if (output / CONFIG_FILE).is_file() and any(output.glob("*.pth")):
        raise ValueError(f"{output} has a training already; resume it by --resume, or choose another --output.")
    if args.eval_only:
        raise ValueError(
            "--eval-only does not go with --data: `mask2former eval` takes the configuration of a training."
        )
    if "WORLD_SIZE" in os.environ or args.num_machines > 1:
        raise ValueError(
            "settings are chosen by one process: do that without torchrun and --num-machines, and stop it when it "
            f"trains; then start train_net.py with --config-file {output / CONFIG_FILE} on all machines."
        )
    if "OUTPUT_DIR" in args.opts[::2]:
        raise ValueError("OUTPUT_DIR is --output here.")
    if args.wandb:
        _check_wandb()
    check_num_gpus(args.num_gpus)
    if args.patience < 0:
        raise ValueError(f"--patience is {args.patience}, expected 0 or more evaluations.")


def _check_wandb() -> None:
    try:
        import_wandb()
    except ModuleNotFoundError as error:
        raise ValueError("--wandb needs the package wandb: pip install 'mask2former[wandb]'") from error


def _read(args: argparse.Namespace, *, skip_bad: bool) -> OwnData:
    given = Given(args.data, args.images, args.segments, args.classes, args.things, args.format)
    val = None
    if args.val_data is not None:
        val = Given(args.val_data, args.val_images, args.val_segments, args.classes, args.things, args.format)
    return read_own_data(given, val, args.val_fraction, skip_bad=skip_bad)


def _print_data(data: OwnData) -> None:
    for name, inspection in data.inspections.items():
        title = {"own_train": "Training data", "own_val": "Validation data"}[name]
        print(f"{title} ({data.entries[name]['FORMAT']}, {data.entries[name]['IMAGES']})\n\n{inspection.table()}\n")
    if data.faults:
        print(f"Left out: {list_faults(data.faults)}\n")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
