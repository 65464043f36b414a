"""Paths in somebody's home folder."""

import os
from pathlib import Path

__all__ = ["expand_home"]


def expand_home(path: str | Path) -> Path:
    """Put the home folder in the place of "~" or "~name"; where there is none, as of a file "~a.png", it stays.

    ``Path.expanduser`` raises a RuntimeError there.
    """
    return Path(os.path.expanduser(path))
