"""Who compares predictions with annotations: hotcoco where it is installed, else pycocotools and panopticapi."""

import functools
import importlib.util
from collections.abc import Iterable
from typing import Any

__all__ = ["BACKENDS", "has_hotcoco", "use_hotcoco"]

BACKENDS = ("auto", "hotcoco", "reference")


@functools.cache  # asked for every mask; to look for what is not there takes milliseconds
def has_hotcoco() -> bool:
    """Whether it is installed: ``pip install 'mask2former[eval]'``."""
    return importlib.util.find_spec("hotcoco") is not None


def use_hotcoco(backend: str, ids: Iterable[Any]) -> bool:
    """Decide by ``TEST.EVALUATION_BACKEND``; the figures are the same, hotcoco's come many times sooner.

    Args:
        backend: "auto" takes hotcoco where it is installed and the ids are what it takes, whole numbers of 64 bits.
        ids: of the data set's images and classes.

    Raises:
        ValueError: if the backend is unknown, or "hotcoco" and the ids are something else.
        ImportError: if it is "hotcoco", which is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"TEST.EVALUATION_BACKEND is {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if backend == "reference":
        return False
    if not has_hotcoco():
        if backend == "hotcoco":
            raise ImportError(
                "TEST.EVALUATION_BACKEND is 'hotcoco', which is not installed; pip install 'mask2former[eval]', or use "
                "'auto' or 'reference'."
            )
        return False
    strange = next((i for i in ids if not isinstance(i, int) or not 0 <= i < 2**64), None)
    if strange is not None and backend == "hotcoco":
        raise ValueError(
            f"TEST.EVALUATION_BACKEND is 'hotcoco', which takes images and classes whose ids are whole numbers from 0 "
            f"to 2^64 - 1, but one is {strange!r}; use 'auto' or 'reference'."
        )
    return strange is None
