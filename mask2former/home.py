"""Paths as people give them: in somebody's home folder, or of a variable that is not set."""

import argparse
import os
from pathlib import Path

__all__ = ["expand_home", "given_path"]


def given_path(text: str) -> Path:
    """The type of an argument of a command line that is a path; "" is none, though Python takes it for "."."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; '.' stands for the working directory")
    return Path(text)


def expand_home(path: str | Path) -> Path:
    """Put the home folder in the place of "~" or "~name"; where there is none, as of a file "~a.png", it stays.

    ``Path.expanduser`` raises a RuntimeError there.
    """
    return Path(os.path.expanduser(path))
