"""The course of a training, from the file of metrics that it wrote."""

import json
import math
from pathlib import Path

__all__ = ["Series", "read_curves"]

Series = list[tuple[int, float]]


def read_curves(path: Path, last_step: int) -> dict[str, Series]:
    """Every number that was logged: by its name, its values with the number of steps (from 1) taken by then.

    A run that was resumed has written some steps twice: the later ones count.

    Args:
        path: ``metrics.json``.
        last_step: Of the run; what Detectron2 logs after it, with a higher number, belongs to it.
    """
    if not path.is_file():
        return {}
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        step = min(int(entry.pop("iteration")) + 1, last_step)
        for name, value in entry.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[step] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}
