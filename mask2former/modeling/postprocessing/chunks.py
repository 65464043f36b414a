"""Masks of the output's size a few at a time, so that all of them never exist in float32."""

from collections.abc import Iterator

from torch import Tensor

__all__ = ["in_chunks"]

# Masks that are resized together: enough to fill the machine, few enough for its memory.
_CHUNK = 16


def in_chunks(rows: Tensor) -> Iterator[Tensor]:
    """The rows a few at a time; of no rows, no chunk."""
    return iter(rows.split(_CHUNK)) if len(rows) else iter(())
