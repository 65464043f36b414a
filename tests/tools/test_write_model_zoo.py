"""MODEL_ZOO.md says what the table of models says."""

import re
from dataclasses import replace

import pytest
import write_model_zoo
from write_model_zoo import BEGIN, END, PAGE, official_entries, with_tables, write_tables

from mask2former.weights import ZooEntry, zoo


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text("utf-8")
    assert with_tables(page) == page, "run python tools/write_model_zoo.py"


def rows(text: str) -> dict[str, list[str]]:
    """Cells by the model's name."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith(") |")]
    return {cells[-2].strip("`"): cells for cells in lines}


def test_every_official_model_has_a_row_with_its_facts() -> None:
    found = rows(PAGE.read_text("utf-8"))
    assert len(found) == 47
    for entry in official_entries():
        cells = found[entry.name]
        assert sorted(float(cell) for cell in cells[2:-2] if cell) == sorted(entry.metrics.values())
        assert cells[1] == (str(entry.epochs) if entry.epochs else f"{entry.iterations // 1000}k")
        assert f"[configuration]({entry.config})" in cells[-1]
        assert f"[checkpoint]({entry.checkpoint})" in cells[-1]


def test_tables_are_in_the_papers_order() -> None:
    text = write_tables(reversed(official_entries()))
    headings = re.findall("### (.*)", text)
    assert headings[0] == "COCO: panoptic segmentation"
    assert headings[-1] == "Mapillary Vistas: semantic segmentation"
    assert len(headings) == 10
    backbones = [cells[0] for name, cells in rows(text).items() if name.startswith("coco/panoptic/")]
    assert backbones == ["R50", "R101", "Swin-T", "Swin-S", "Swin-B", "Swin-B (IN21k)", "Swin-L (IN21k)"]


def test_a_metric_that_one_model_lacks_leaves_a_gap() -> None:
    entry = zoo()["coco/panoptic/R50"]
    table = write_tables([entry, replace(entry, name="coco/panoptic/R101", metrics={"PQ": 52.0})])
    assert rows(table)["coco/panoptic/R101"][:5] == ["R101", "50", "52.0", "", ""]


def test_what_has_no_place_is_an_error() -> None:
    for entry in (
        ZooEntry("shapes/panoptic/R50", "a", "https://b", {"PQ": 1.0}),
        ZooEntry("coco/panoptic/R18", "a", "https://b", {"PQ": 1.0}),
        ZooEntry("coco/panoptic/R50", "a", "https://b", {"AR": 1.0}),
    ):
        with pytest.raises(ValueError, match=rf"{entry.name} \(\w+\) has no place in the tables; add it"):
            write_tables([entry])


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"MODEL_ZOO\.md must have the lines .*begin.* and .*end.* once each"):
        with_tables(BEGIN + "no end")
    assert with_tables(f"before\n{BEGIN}old\n{END}after\n").startswith(f"before\n{BEGIN}\n### COCO")
    assert write_model_zoo.PAGE.name == "MODEL_ZOO.md"
