"""What the predictions on validation images tell: quality by class, confusions, best and worst pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.evaluation import SavedPredictions
from mask2former.own_data.report.matching import class_qualities, match_segments
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
    record_of = {record["file_name"]: record for record in records}

    def read(record: dict[str, Any]) -> tuple[Segments, Segments]:
        return true_segments(record, task, metadata), predicted_segments(saved, record, len(names))

    confusion, ious = np.zeros((len(names) + 1,) * 2, dtype=np.int64), np.zeros(len(names))
    ranked = []
    for name, record in record_of.items():
        match = match_segments(*read(record), task, len(names))
        confusion += match.confusion
        ious += match.ious
        if match.quality is not None:
            ranked.append((match.quality, name))
    ranked.sort(reverse=True)
    worst = ranked[::-1][: min(_SHOWN, len(ranked) // 2)]
    best = ranked[: min(_SHOWN, len(ranked) - len(worst))]

    def draw(chosen: Sequence[tuple[float, str]]) -> str:
        pairs = []
        for quality, name in chosen:
            true, predicted = read(record_of[name])
            left, right = draw_pair(name, predicted, true, metadata)
            pairs.append(PairOfPictures(Path(name).name, f"quality {100 * quality:.0f} %", left, right))
        return f'<div class="pairs">{pictures(pairs)}</div>' if pairs else ""

    table = class_table(names, class_qualities(confusion, ious, task), results, task, metadata.thing_classes)
    counted = "pixels" if task == "semantic" else "segments"
    return [
        section("Classes", table, note=_CLASS_NOTES[task]),
        section(
            "Confusion of classes",
            confusion_table(names, confusion, task),
            note=f"So many percent of the true {counted} of a row were predicted as the column. The last row: so many "
            "percent of the predictions of a column are nothing in truth. Counts show when the mouse is over a field.",
        ),
        section("Worst pictures", draw(worst), note="Left what was predicted, right what is true."),
        section("Best pictures", draw(best), note="Left what was predicted, right what is true."),
    ]
