"""Tables 1 to 3: what is counted here is what the paper says, and every prediction is timed."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "benchmarks"))

import paper_tables

SMALL = ["MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.DEC_LAYERS", 2]


def _arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"drawn": 0, "images": 0, "published_weights": False, "opts": [], **given})


def test_parameters_and_operations_are_the_papers() -> None:
    """Of one row; tests of ``analyze_model.py`` have the others."""
    row = paper_tables.TABLES["2"]["rows"][1]
    measured = paper_tables.measure_row(row, (800, 1120), _arguments())
    assert measured["M parameters"] == pytest.approx(row["M parameters"], rel=0.02)
    assert measured["GFLOPs"] == pytest.approx(row["GFLOPs"], rel=0.03)
    assert set(measured) == {"M parameters", "GFLOPs"}, "speed is measured when it is asked for"


def test_every_row_has_a_configuration() -> None:
    for table in paper_tables.TABLES.values():
        for row in table["rows"]:
            assert (paper_tables.CONFIGS / row["config"]).is_file()


def test_speed_of_images_of_noise_with_some_sure_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[dict[str, Any]] = []
    measure = paper_tables.measure_speed

    def keep_results(model: nn.Module, inputs: Any) -> float:
        model.register_forward_hook(lambda module, args, output: results.extend(output))
        return measure(model, inputs)

    monkeypatch.setattr(paper_tables, "measure_speed", keep_results)
    row = paper_tables.TABLES["1"]["rows"][1]
    measured = paper_tables.measure_row(row, (64, 96), _arguments(drawn=2, opts=SMALL))
    assert measured["fps"] > 0
    assert len(results) == 2 + paper_tables.WARM_UP
    for result in results:
        assert "panoptic_seg" in result
        assert len({int(c) for c in result["instances"].pred_classes}) >= paper_tables.SURE_QUERIES


def test_speed_is_the_average_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take 1 s, 1 s, ... by a clock of its own, of which the warming up does not count."""
    now = 0.0

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: list[dict[str, Any]]) -> None:
            nonlocal now
            now += batch[0]["seconds"]

    monkeypatch.setattr(paper_tables.time, "perf_counter", lambda: now)
    assert paper_tables.measure_speed(Slow(), [[{"seconds": 1.0}], [{"seconds": 3.0}]]) == 0.5


def test_the_table_quotes_the_paper_and_leaves_gaps() -> None:
    table = {
        "metrics": ["PQ"],
        "rows": [
            {"method": "A", "backbone": "R50", "PQ": 51.9, "GFLOPs": 226},
            {"method": "B", "backbone": "R18"},
        ],
    }
    rows = paper_tables.markdown_table(table, [{"GFLOPs": 225.6}, {"GFLOPs": 99.9}]).splitlines()
    assert rows[0] == "| method | backbone | PQ (paper) | GFLOPs | GFLOPs (paper) |"
    assert rows[2:] == ["| A | R50 | 51.9 | 226 | 226 |", "| B | R18 | - | 100 | - |"]


def test_weights_that_were_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    row = paper_tables.TABLES["1"]["rows"][0]
    with pytest.raises(SystemExit, match="No weights were published for configs/coco/panoptic-segmentation"):
        paper_tables.measure_row(row, (64, 64), _arguments(drawn=1, published_weights=True))
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "7"])
    with pytest.raises(SystemExit):
        paper_tables.main()
