"""Tables of ``run_ablations.py``: our results beside the paper's, as Markdown, CSV and a plot."""

import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["Result", "markdown_table", "summarise", "write_report"]

# Of one run: "metrics" by name, "peak_memory_gb", "parameters", "gflops".
Result = dict[str, Any]


class Column(NamedTuple):
    """What a table shows of each run."""

    title: str
    value: Callable[[Result], float | None]
    paper: str = ""
    """Key of the paper's number, if it gives one."""
    decimals: int = 1


class Cell(NamedTuple):
    """Our runs of one row, and the paper's number."""

    mean: float | None
    deviation: float | None
    paper: float | None


def _metric(name: str) -> Callable[[Result], float | None]:
    def value(result: Result) -> float | None:
        # With several data sets, their name comes first; the first data set counts.
        return next((v for key, v in result["metrics"].items() if key == name or key.endswith(f"/{name}")), None)

    return value


METRICS = [
    Column("AP", _metric("segm/AP"), "AP"),
    Column("PQ", _metric("panoptic_seg/PQ"), "PQ"),
    Column("mIoU", _metric("sem_seg/mIoU"), "mIoU"),
]
COSTS = [
    Column("GFLOPs", lambda result: result["gflops"], "GFLOPs", 0),
    Column("M parameters", lambda result: result["parameters"] / 1e6),
    Column("peak GB", lambda result: result["peak_memory_gb"], "GB"),
]


def summarise(rows: Sequence[dict[str, Any]], results: dict[str, list[Result]]) -> list[dict[str, Cell]]:
    """For each row, its cells by the title of their column; the deviation is the sample's, from two seeds on."""
    summary = []
    for row in rows:
        cells = {}
        for column in [*METRICS, *COSTS]:
            values = [v for v in map(column.value, results.get(row["config"], [])) if v is not None]
            cells[column.title] = Cell(
                mean=statistics.fmean(values) if values else None,
                deviation=statistics.stdev(values) if len(values) > 1 else None,
                paper=row.get(column.paper),
            )
        summary.append(cells)
    return summary


def write_report(name: str, table: dict[str, Any], results: dict[str, list[Result]], folder: Path) -> str:
    """Write ``table_NAME.md``, ``.csv`` and ``.png`` to a folder.

    Args:
        name: of the table, such as "4a".
        table: its "title" and "rows", each with "name", "config" and the paper's numbers.
        results: for each "config" the runs that are finished.
        folder: where to write.

    Returns:
        The Markdown.
    """
    rows = table["rows"]
    summary = summarise(rows, results)
    runs = [len(results.get(row["config"], [])) for row in rows]
    text = f"### Table {name}: {table['title']}\n\n" + markdown_table(rows, summary, runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"table_{name}.md").write_text(text + "\n")
    _write_csv(folder / f"table_{name}.csv", rows, summary, runs)
    _plot(folder / f"table_{name}.png", f"Table {name}: {table['title']}", rows, summary)
    return text


def markdown_table(rows: Sequence[dict[str, Any]], summary: Sequence[dict[str, Cell]], runs: Sequence[int]) -> str:
    """Give ours, mean and deviation, and the paper's in brackets; columns that nothing is known of are left out."""
    columns = [
        column
        for column in [*METRICS, *COSTS]
        if any(cells[column.title].mean is not None or cells[column.title].paper is not None for cells in summary)
    ]
    lines = [
        "| row | runs | " + " | ".join(f"{c.title} (paper)" if c.paper else c.title for c in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for row, cells, count in zip(rows, summary, runs, strict=True):
        values = [_format(cells[column.title], column.decimals) for column in columns]
        lines.append(f"| {row['name']} | {count} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _format(cell: Cell, decimals: int) -> str:
    text = "-" if cell.mean is None else f"{cell.mean:.{decimals}f}"
    if cell.deviation is not None:
        text += f" ± {cell.deviation:.{decimals}f}"
    return text if cell.paper is None else f"{text} ({cell.paper})"


def _write_csv(
    path: Path, rows: Sequence[dict[str, Any]], summary: Sequence[dict[str, Cell]], runs: Sequence[int]
) -> None:
    """One line a row; a number that is not known is an empty field."""
    titles = [column.title for column in [*METRICS, *COSTS]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "config", "runs", *(f"{t} {part}" for t in titles for part in Cell._fields)])
        for row, cells, count in zip(rows, summary, runs, strict=True):
            writer.writerow([row["name"], row["config"], count, *(value for t in titles for value in cells[t])])


def _plot(path: Path, title: str, rows: Sequence[dict[str, Any]], summary: Sequence[dict[str, Cell]]) -> None:
    """One panel a metric: bars for ours with the deviation, diamonds for the paper's."""
    figure, axes = plt.subplots(
        1, len(METRICS), figsize=(4 * len(METRICS) + 2, 1.2 + 0.45 * len(rows)), sharey=True, layout="constrained"
    )
    for axis, column in zip(axes, METRICS, strict=True):
        cells = [cells[column.title] for cells in summary]
        nan = float("nan")
        axis.barh(
            range(len(rows)),
            [nan if cell.mean is None else cell.mean for cell in cells],
            xerr=[cell.deviation or 0 for cell in cells],
            color="tab:blue",
            label="ours",
        )
        axis.scatter(
            [nan if cell.paper is None else cell.paper for cell in cells],
            range(len(rows)),
            marker="D",
            color="black",
            label="paper",
            zorder=3,
        )
        axis.set_xlabel(column.title)
    axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes[0].invert_yaxis()
    axes[-1].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
