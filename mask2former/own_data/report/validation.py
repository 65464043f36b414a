"""What the predictions on validation images tell: quality by class, confusions, best and worst pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former.evaluation import SavedPredictions
from mask2former.own_data.report.matching import Matches, class_qualities, match_segments, sum_confusion
from mask2former.own_data.report.page import PairOfPictures, pictures, section
from mask2former.own_data.report.pictures import draw_pair
from mask2former.own_data.report.segments import Segments, predicted_segments, true_segments
from mask2former.own_data.report.tables import class_table, confusion_table
from mask2former.visualization import Task

__all__ = ["validation_sections"]

_SHOWN = 6  # best pictures, and worst ones

_SEGMENTS_NOTE = (
    "found: share of the true segments that a prediction of the same class covers with an IoU of half or more; right: "
    "share of the predicted segments that do so; quality: both, weighted by the IoU (PQ). "
)
_CLASS_NOTES: dict[Task, str] = {
    "semantic": "found: share of a class's pixels that were predicted as it; right: share of the pixels predicted as "
    "it that are. In percent, as is IoU.",
    "panoptic": _SEGMENTS_NOTE + "In percent, as are AP and IoU.",
    "instance": _SEGMENTS_NOTE + "Of predictions with a score of half or more; AP looks at all. In percent.",
}


def validation_sections(
    folder: Path, records: Sequence[dict[str, Any]], metadata: Any, task: Task, results: dict[str, Any]
) -> list[str]:
    """The sections.

    Args:
        folder: ``OUTPUT_DIR/inference``.
        records: Dataset dicts.
        metadata: Of the data set.
        task: What is judged.
        results: Of the evaluators.
    """
    names: list[str] = metadata.thing_classes if task == "instance" else metadata.stuff_classes
    saved = SavedPredictions(metadata.name, folder, task)
    predicted = {record["file_name"]: predicted_segments(saved, record, len(names)) for record in records}
    true = {record["file_name"]: true_segments(record, task, metadata) for record in records}
    matches = {name: match_segments(true[name], predicted[name], task, len(names)) for name in true}
    every = list(matches.values())
    confusion = confusion_table(names, sum_confusion(every, len(names)), task)
    counted = "pixels" if task == "semantic" else "segments"
    ranked = sorted(
        ((match.quality, name) for name, match in matches.items() if match.quality is not None), reverse=True
    )
    worst = ranked[::-1][: min(_SHOWN, len(ranked) // 2)]
    best = ranked[: min(_SHOWN, len(ranked) - len(worst))]

    def draw(chosen: Sequence[tuple[float, str]]) -> str:
        pairs = [_pair(name, matches[name], predicted[name], true[name], metadata) for _, name in chosen]
        return f'<div class="pairs">{pictures(pairs)}</div>' if pairs else ""

    table = class_table(names, class_qualities(every, len(names), task), results, task, metadata.thing_classes)
    return [
        section("Classes", table, note=_CLASS_NOTES[task]),
        section(
            "Confusion of classes",
            confusion,
            note=f"So many percent of the true {counted} of a row were predicted as the column. The last row: so many "
            "percent of the predictions of a column are nothing in truth. Counts show when the mouse is over a field.",
        ),
        section("Worst pictures", draw(worst), note="Left what was predicted, right what is true."),
        section("Best pictures", draw(best), note="Left what was predicted, right what is true."),
    ]


def _pair(name: str, match: Matches, predicted: Segments, true: Segments, metadata: Any) -> PairOfPictures:
    left, right = draw_pair(name, predicted, true, metadata)
    return PairOfPictures(Path(name).name, f"quality {100 * (match.quality or 0):.0f} %", left, right)
