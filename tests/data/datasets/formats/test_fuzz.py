"""Whatever the files hold, reading ends in records or in DataError: no other exception, no crash, no endless loop."""

import json
import random
import shutil
from pathlib import Path

import pytest

from mask2former.data.datasets.entry import parse_entry
from mask2former.data.datasets.faults import DataError
from tests.brick_data import FORMATS, make_pictures, write_data
from tests.mutations import ROUNDS, at_every_path, mutate

WRONG = [None, True, -1, 1.5, 10**30, float("nan"), "../../x", [], {}]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", list(FORMATS))
def test_readers(form: str, data_root: Path) -> None:
    entry = write_data(data_root / "own", form, make_pictures(2))
    whole = data_root / "whole"
    (data_root / "own").rename(whole)
    rng = random.Random(form)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(ROUNDS):
        shutil.copytree(whole, data_root / "own", dirs_exist_ok=True)
        annotations = [path for path in (data_root / "own").rglob("*.*") if path.suffix != ".yaml"]
        mutate(rng.choice(annotations), rng)
        for skip_bad in (False, True):
            try:
                parse_entry("own", entry | {"SKIP_BAD": skip_bad}).load()
                outcomes["read"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert outcomes["read"] > 10
    assert outcomes["refused"] > 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", ["coco_instance", "coco_panoptic", "labelme"])
def test_wrong_types_at_every_path(form: str, data_root: Path) -> None:
    entry = write_data(data_root / "own", form, make_pictures(1))
    annotations = Path(data_root / entry["ANNOTATIONS"])
    file = annotations if annotations.is_file() else next(annotations.glob("*.json"))
    refused = 0
    for where, content in at_every_path(json.loads(file.read_text()), WRONG):
        file.write_text(json.dumps(content))
        try:
            parse_entry("own", entry).load()
        except DataError:
            refused += 1
        except Exception as error:
            raise AssertionError(where) from error
    assert refused > 100
