"""Tables of a page."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from mask2former.own_data.report.matching import ClassQuality
from mask2former.visualization import Task

__all__ = ["class_table", "confusion_table", "percent", "table"]

_NOTHING = "\N{EN DASH}"
_MOST_CLASSES = 40  # in a table of confusions, which has as many columns


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, css: str = "") -> str:
    """A table of text; columns of numbers stand at the right."""
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    head = "".join(f"<th{_class(right)}>{escape(name)}</th>" for name, right in zip(header, numeric, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(right)}>{escape(str(value))}</td>" for value, right in zip(row, numeric, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def class_table(
    names: Sequence[str],
    qualities: Sequence[ClassQuality],
    metrics: dict[str, dict[str, float]],
    task: Task,
    things: Sequence[str],
) -> str:
    """Quality by class: what was counted here, and what the evaluators say.

    Args:
        names: Of the classes.
        qualities: Of the classes.
        metrics: Of the evaluators, in percent.
        task: What is judged.
        things: Names of those classes that are.
    """
    columns = [("AP", "segm", "AP-{}"), ("IoU", "sem_seg", "IoU-{}")]
    known = [
        (title, [metrics.get(part, {}).get(pattern.format(name), math.nan) for name in names])
        for title, part, pattern in columns
    ]
    if all(map(math.isnan, known[0][1])) and len(things) == 1:  # Detectron2 has no AP by class then
        ap = metrics.get("segm", {}).get("AP", math.nan)
        known[0] = ("AP", [ap if name == things[0] else math.nan for name in names])
    known = [(title, values) for title, values in known if not all(map(math.isnan, values))]
    counted = "pixels" if task == "semantic" else "segments"
    header = ["class", counted, "found", "right", *(["quality"] if task != "semantic" else []), *(t for t, _ in known)]
    rows = []
    for i, (name, quality) in enumerate(zip(names, qualities, strict=True)):
        row: list[Any] = [name, quality.true, percent(quality.recall), percent(quality.precision)]
        if task != "semantic":
            row.append(percent(quality.quality))
        rows.append([*row, *(percent(values[i] / 100) for _, values in known)])
    return table(header, rows)


def confusion_table(names: Sequence[str], confusion: np.ndarray, task: Task) -> str:
    """What each true class was taken for: shares of a row, the darker the more; in the last row of a column.

    Args:
        names: K of them.
        confusion: (K + 1, K + 1), the true class first; the last is nothing.
        task: Says what is counted.
    """
    occurring = np.flatnonzero((confusion[:-1].sum(1) + confusion[:, :-1].sum(0)) > 0)
    order = occurring[np.argsort(-confusion[occurring].sum(1), kind="stable")][:_MOST_CLASSES].tolist()
    nothing = len(names)
    labels = [*(names[i] for i in order), "nothing" if task != "semantic" else "unlabelled"]
    columns = [*order, nothing]
    rows = [*order, nothing] if confusion[nothing].any() else order
    head = "".join(f"<th><span>{escape(label)}</span></th>" for label in labels)
    body = ""
    for i in rows:
        name = names[i] if i != nothing else "nothing"
        totals = confusion.sum(0) if i == nothing else np.full(nothing + 1, confusion[i].sum())
        cells = "".join(_heat(int(confusion[i, j]), confusion[i, j] / max(totals[j], 1), i == j) for j in columns)
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    left_out = len(occurring) - len(order)
    note = f"<p class='note'>The {left_out} rarest classes are left out.</p>" if left_out else ""
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th>true \\ predicted</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def percent(share: float) -> str:
    """With one digit; a dash for NaN."""
    return _NOTHING if math.isnan(share) else f"{100 * share:.1f}"


def _heat(count: int, share: float, right: bool) -> str:
    kind = "right" if right else "wrong"
    if not count:
        return "<td></td>"
    text = f"{100 * share:.0f}"
    return f'<td class="{kind}" style="--share:{share:.3f}" title="{count}">{text}</td>'


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def _is_number(value: Any) -> bool:
    text = str(value).removesuffix("%")
    return text == _NOTHING or text.replace(".", "", 1).isdigit()
