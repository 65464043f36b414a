"""The command ``mask2former``: segment, train, evaluate, export and time, look at data, convert weights, try models."""

import argparse
from collections.abc import Sequence

from mask2former import __version__
from mask2former.cli.data import add_browse, add_inspect
from mask2former.cli.models import add_benchmark, add_convert, add_demo, add_export, add_models
from mask2former.cli.predict import add_predict
from mask2former.cli.train import add_eval, add_train
from mask2former.engine.run import INTERRUPTED
from mask2former.inference.runs import complain, print_any_name

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="mask2former", description="Segment pictures with Mask2Former, or train it.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # As long as the longest command and its indentation, or argparse breaks that line.
    commands = parser.add_subparsers(title="commands", required=True, metavar="SUB-COMMAND")
    add_predict(commands)
    add_train(commands)
    add_eval(commands)
    add_inspect(commands)
    add_browse(commands)
    add_export(commands)
    add_benchmark(commands)
    add_convert(commands)
    add_demo(commands)
    add_models(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; default: the process's own.

    Returns:
        The exit code: 0, or 1 where something could not be done; each such thing has one line on stderr;
        130 after Ctrl-C.
    """
    args = get_parser().parse_args(argv)
    print_any_name()
    try:
        result: int = args.run(args)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return result
