"""What commands have in common: their errors, and which model is meant."""

import argparse
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from mask2former.api import load
from mask2former.inference import Segmenter
from mask2former.inference.runs import complain

__all__ = ["DATA_ERRORS", "MODEL_ERRORS", "Commands", "add_model_arguments", "complaining", "load_model"]

# What commands are added to.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run = Callable[[argparse.Namespace], int]
# Of data and settings: all that is wrong with them, and that needs no traceback.
DATA_ERRORS = (OSError, ValueError, KeyError)
# Of models, pictures and packages that are not installed, likewise.
MODEL_ERRORS = (OSError, ValueError, ModuleNotFoundError)


def complaining(*errors: type[Exception]) -> Callable[[Run], Run]:
    """Let a command end with exit code 1 and one line on stderr at these errors."""

    def decorate(command: Run) -> Run:
        @functools.wraps(command)
        def run_command(args: argparse.Namespace) -> int:
            try:
                return command(args)
            except errors as error:
                complain(error.args[0] if isinstance(error, KeyError) else error)
                return 1

        return run_command

    return decorate


def add_model_arguments(
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


def load_model(args: argparse.Namespace) -> Segmenter:
    """The model that :func:`add_model_arguments` lets people name."""
    return load(args.model, args.weights, device=args.device, opts=args.opts)
