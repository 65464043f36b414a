"""``mask2former train`` and ``mask2former eval``."""

import argparse

from detectron2.engine import default_argument_parser

from mask2former.cli.common import DATA_ERRORS, Commands, complaining
from mask2former.engine.launch import check_address, check_num_gpus
from mask2former.engine.run import run
from mask2former.engine.setup import check_data_sets, load_config
from mask2former.own_data.command import (
    add_data_arguments,
    add_training_arguments,
    check_needs_data,
    prepare_training,
    train_and_report,
)

__all__ = ["add_eval", "add_train"]


def add_train(commands: Commands) -> None:
    """Add ``train``."""
    command = _add(commands, "train", "train a model, on your own data with --data")
    command.set_defaults(eval_only=False)
    add_data_arguments(command, required=False)
    add_training_arguments(command)


def add_eval(commands: Commands) -> None:
    """Add ``eval``."""
    _add(commands, "eval", "evaluate a model").set_defaults(eval_only=True)


def _add(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, parents=[default_argument_parser(epilog=" ")], conflict_handler="resolve"
    )
    command.set_defaults(run=_train, data=None)
    return command


def _train(args: argparse.Namespace) -> int:
    check = _check_without_data if args.data is None else _prepare_training
    return check(args) or _run(args)


# Weights, data, output, and another training there. What goes wrong in a step is logged with its traceback.
@complaining(OSError, ValueError)
def _run(args: argparse.Namespace) -> int:
    (run if args.data is None else train_and_report)(args)
    return 0


@complaining(*DATA_ERRORS)
def _prepare_training(args: argparse.Namespace) -> int:
    return prepare_training(args)


@complaining(OSError, ValueError)
def _check_without_data(args: argparse.Namespace) -> int:
    if not args.eval_only:
        check_needs_data(args)
    if not args.config_file:
        raise ValueError("say what to run: --config-file FILE" + ("" if args.eval_only else ", or --data PATH") + ".")
    check_num_gpus(args.num_gpus)
    check_address(args.num_machines, args.machine_rank, args.dist_url)
    check_data_sets(load_config(args.config_file, args.opts), eval_only=args.eval_only)
    return 0
