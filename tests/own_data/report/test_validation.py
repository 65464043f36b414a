"""Which pictures are shown, and what the tables sum up."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mask2former.evaluation.run_lengths import encode_mask
from mask2former.own_data.report.validation import validation_sections

METADATA = SimpleNamespace(
    name="none", thing_classes=["bar"], stuff_classes=["bar"], thing_dataset_id_to_contiguous_id={0: 0}
)


@pytest.mark.parametrize(("count", "worst", "best"), [(1, 0, 1), (5, 2, 3), (14, 6, 6)])
def test_the_worst_and_the_best_pictures(tmp_path: Path, count: int, worst: int, best: int) -> None:
    """Of picture ``i`` a bar of 40 pixels is found but for ``i`` of them; another has and shows nothing."""
    records, predictions = [], []
    for i in range(count + 1):
        found, true = np.zeros((2, 40), dtype=bool), np.zeros((2, 40), dtype=bool)
        true[0], found[0, i:] = True, True
        file = tmp_path / f"{i}.png"
        Image.fromarray(np.zeros((2, 40, 3), dtype=np.uint8)).save(file)
        truth = [{"segmentation": encode_mask(true), "category_id": 0}] if i < count else []
        records.append({"file_name": str(file), "image_id": i, "height": 2, "width": 40, "annotations": truth})
        score = 0.9 if i < count else 0.1
        predictions.append({"image_id": i, "category_id": 0, "score": score, "segmentation": encode_mask(found)})
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(predictions))
    classes, _, *shown = validation_sections(tmp_path, records, METADATA, "instance", {"segm": {"AP": 12.0}})
    qualities = [(40 - i) / 40 for i in range(count)]
    assert f">{100 * np.mean(qualities):.1f}<" in classes
    captions = [re.findall(r"<b>(\d+)\.png</b> quality (\d+) %", section) for section in shown]
    expected = [(str(i), f"{100 * qualities[i]:.0f}") for i in range(count)]
    assert captions == [expected[::-1][:worst], expected[:best]]
    assert "Best pictures" in shown[1]
    assert ("Worst pictures" in shown[0]) == (worst > 0)
