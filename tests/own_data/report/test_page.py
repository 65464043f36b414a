"""The parts of the page: what they show, and that names from the data cannot do harm."""

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from mask2former.engine import load_config
from mask2former.own_data.report import write_report
from mask2former.own_data.report.charts import line_chart
from mask2former.own_data.report.curves import read_curves
from mask2former.own_data.report.matching import ClassQuality
from mask2former.own_data.report.page import PairOfPictures, page, pictures, section, tiles
from mask2former.own_data.report.tables import class_table, confusion_table, table

EVIL = '<script>alert("x")</script>'


def test_curves(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"iteration": 19, "total_loss": 3.0, "eta": "x"}\n{"iteration": 39, "total_loss": 9}\n'
        '{"iteration": 39, "total_loss": 2, "segm/AP": NaN}\n{"iteration": 60, "segm/AP": 5}\n{"iteration": 7'
    )
    assert read_curves(file, 60) == {"total_loss": [(20, 3.0), (40, 2.0)], "segm/AP": [(60, 5.0)]}
    assert read_curves(tmp_path / "none.json", 60) == {}


def test_chart() -> None:
    drawn = line_chart("loss", {"a": [(20, 4.0), (40, 2.0)], "b": []}, zero=True)
    root = ET.fromstring(drawn)
    (line,) = root.iter("polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    grid = {float(tick.attrib["y1"]) for tick in root.iter("line")}
    assert y0 in grid  # 4 is a tick
    assert x0 < x1
    assert y0 < y1
    labels = [text.text for text in root.iter("text")]
    assert {"0", "1", "2", "3", "4"} <= set(labels)
    assert [circle[0].text for circle in root.iter("circle")] == ["step 20: 4", "step 40: 2"]
    assert line_chart("loss", {"a": []}) == ""
    long = [(step, math.sin(step)) for step in range(200)]
    smooth = ET.fromstring(line_chart("x", {"a": long}, smooth=True))
    assert not list(smooth.iter("circle"))
    values, means = (
        [float(point.partition(",")[2]) for point in line.attrib["points"].split()] for line in smooth.iter("polyline")
    )
    expected = [np.mean(values[max(0, i - 6) : i + 7]) for i in range(200)]
    assert means == pytest.approx(expected, abs=0.11)  # both are rounded to a tenth of a pixel


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, 1e-7], [1e9, 1e9 + 1], [1e-5, 1e-4]])
def test_charts_of_odd_numbers(values: list[float]) -> None:
    points = [(step, value) for step, value in enumerate(values)]
    root = ET.fromstring(line_chart("x", {"a": points}))
    heights = [float(circle.attrib["cy"]) for circle in root.iter("circle")]
    assert all(0 <= height <= 260 for height in heights)


def test_nothing_in_names_is_read_as_html() -> None:
    qualities = [ClassQuality(1, 1.0, 1.0, 1.0)]
    parts = [
        tiles([(EVIL, EVIL)]),
        table([EVIL], [[EVIL]]),
        class_table([EVIL], qualities, {"segm": {"AP": 3.0}}, "instance", [EVIL]),
        confusion_table([EVIL], np.ones((2, 2), dtype=int), "instance"),
        pictures([PairOfPictures(EVIL, EVIL, "data:,", "data:,")]),
        line_chart(EVIL, {EVIL: [(1, 1.0)]}),
    ]
    document = page(EVIL, [section(EVIL, *parts, note=EVIL)])
    assert "<script" not in document
    assert document.count("&lt;script") >= 10


def test_class_table_of_a_single_thing_has_its_ap() -> None:
    qualities = [ClassQuality(3, 0.5, math.nan, 0.25), ClassQuality(2, 1.0, 1.0, 1.0)]
    metrics = {"segm": {"AP": 44.0}, "sem_seg": {"IoU-cell": 80.0, "IoU-glass": 90.0}}
    text = class_table(["cell", "glass"], qualities, metrics, "panoptic", ["cell"])
    rows = [[cell.text for cell in row] for row in ET.fromstring(text).iter("tr")]
    assert rows[0] == ["class", "segments", "found", "right", "quality", "AP", "IoU"]
    assert rows[1] == ["cell", "3", "50.0", "\N{EN DASH}", "25.0", "44.0", "80.0"]
    assert rows[2][5:] == ["\N{EN DASH}", "90.0"]
    assert [cell.get("class") for cell in ET.fromstring(text).find("table/tbody/tr")] == [None, *["number"] * 6]


def test_confusion_table() -> None:
    confusion = np.array([[6, 2, 2], [0, 0, 0], [4, 0, 0]])
    text = confusion_table(["a", "b"], confusion, "instance")
    root = ET.fromstring(text)
    headings = ["".join(cell.itertext()) for cell in root.iter("th")]
    assert headings == ["true \\ predicted", "a", "b", "nothing", "a", "b", "nothing"]
    rows = [[cell.text for cell in row][1:] for row in root.find("table/tbody").iter("tr")]
    assert rows == [["60", "20", "20"], [None, None, None], ["40", None, None]]  # 4 of 10 predictions of a are nothing
    kinds = [(cell.get("class"), cell.get("title")) for cell in root.iter("td") if cell.text]
    assert kinds == [("right", "6"), ("wrong", "2"), ("wrong", "2"), ("wrong", "4")]
    many = np.diag([*range(50, 0, -1), 0])
    assert "The 10 rarest classes are left out." in confusion_table([str(i) for i in range(50)], many, "instance")


def test_an_empty_section_is_none() -> None:
    assert section("title", "", "") == ""


def test_a_training_without_validation(tmp_path: Path) -> None:
    cfg = load_config(opts=["MODEL.WEIGHTS", "weights/R50.pkl", "MODEL.DEVICE", "cpu"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    logged = {"time": 0.25, "lr": 0.1, "total_loss": 9, "loss_ce": 1.5, "loss_dice": 2.5, "segm/AP": 30}
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 19, **logged}))
    text = write_report(tmp_path).read_text()
    assert "<dt>a step takes</dt><dd>0.25 s</dd>" in text
    assert "<dt>started from</dt><dd>R50.pkl</dd>" in text
    assert re.findall(r'class="key c\d">([^<]*)<', text) == [
        "mask AP: 30",
        "total: 9",
        "ce: 1.5",
        "dice: 2.5",
        "rate: 0.1",
    ]


def test_folders_of_no_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml: is it the output folder of a training\?"):
        write_report(tmp_path)
