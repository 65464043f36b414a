"""``mask2former inspect`` and ``mask2former browse``: what data hold."""

import argparse

from mask2former.cli.common import DATA_ERRORS, Commands, complaining
from mask2former.engine.browse import browse, for_data_sets
from mask2former.engine.setup import load_config
from mask2former.home import given_path
from mask2former.own_data.command import add_data_arguments, inspect_data

__all__ = ["add_browse", "add_inspect"]


def add_inspect(commands: Commands) -> None:
    """Add ``inspect``."""
    command = commands.add_parser("inspect", help="check your own data and tell what they hold")
    add_data_arguments(command, required=True)
    command.set_defaults(run=_inspect)


@complaining(*DATA_ERRORS)
def _inspect(args: argparse.Namespace) -> int:
    return inspect_data(args)


def add_browse(commands: Commands) -> None:
    """Add ``browse``."""
    command = commands.add_parser(
        "browse",
        help="draw the ground truth of a data set",
        description="Draw ground truth as the model is trained with it: after the augmentations of the configuration's "
        "dataset mapper.",
    )
    command.add_argument("--config-file", required=True, metavar="FILE")
    command.add_argument("--output", required=True, type=given_path, metavar="FOLDER")
    command.add_argument("--split", choices=("train", "test"), default="train", help="DATASETS.TRAIN (default) or TEST")
    command.add_argument("--dataset", metavar="NAME", help="a registered data set in place of the configuration's")
    command.add_argument("--number", type=int, default=16, metavar="N", help="of pictures, at random (default: 16)")
    command.add_argument("--seed", type=int, default=0, help="of the choice and the augmentations (default: 0)")
    command.add_argument("--no-augmentation", action="store_true", help="draw the pictures as they are")
    command.add_argument("--sheet", action="store_true", help="also write all of them on one page, sheet.jpg")
    command.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="keys of the configuration")
    command.set_defaults(run=_browse)


@complaining(OSError, ValueError)
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
