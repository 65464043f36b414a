"""Reading JSON that others wrote: any content must end in the right thing or in a fault."""

import json
import reprlib
from pathlib import Path
from typing import Any

from .faults import DataError, Fault

__all__ = ["is_number", "read_flag", "read_json", "read_text", "shown"]

_LARGE = 1e9  # more pixels than any picture has along an edge

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 200, 60, 3


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8.

    Raises:
        FileNotFoundError: Nothing is there.
        DataError: It is not text in UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Relative paths start at $DETECTRON2_DATASETS (default ./datasets)."
        )
    try:
        text = path.read_text("utf-8-sig")
        wrong = "zero bytes, as UTF-16 has them" if "\0" in text else ""
    except UnicodeDecodeError as error:
        text, wrong = "", f"{error.reason} at byte {error.start}"
    if wrong:
        raise DataError([Fault(str(path), f"is not UTF-8 text ({wrong}). Save it as UTF-8.")])
    return text


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: Nothing is there.
        DataError: It is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in brackets
        raise DataError([Fault(str(path), f"is not JSON ({error}).")]) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which a key stands twice only with one value; Python would take the last and lose the others."""
    found = dict(pairs)
    if len(found) != len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"the key {shown(key)} has two values, {shown(value)} and {shown(found[key])}")
    return found


def is_number(value: Any) -> bool:
    """Whether it is a finite number of a size that makes sense in a picture; True and False are none."""
    return type(value) in (int, float) and -_LARGE < value < _LARGE  # false for NaN


def read_flag(entry: dict[str, Any], key: str) -> bool:
    """What COCO writes as 0 or 1; false where it is absent or null.

    Raises:
        ValueError: It is anything else, such as the text "0", which Python takes for true.
    """
    value = entry.get(key)
    if value is not None and value not in (0, 1):
        raise ValueError(f'has "{key}" {shown(value)}, expected 0 or 1.')
    return bool(value)


def shown(value: Any) -> str:
    """A value from a file as a message shows it: as Python writes it, but never long."""
    return _SHORT.repr(value)
