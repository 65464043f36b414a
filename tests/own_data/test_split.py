from pathlib import Path

import pytest

from mask2former.own_data.data import read_own_data
from mask2former.own_data.source import Given
from mask2former.own_data.split import split_records
from tests.brick_data import FORMATS, make_pictures, write_data


def records(*classes: tuple[int, ...]) -> list[dict]:
    return [
        {"file_name": f"{i:03d}.png", "annotations": [{"category_id": c} for c in present]}
        for i, present in enumerate(classes)
    ]


def names(part: list[dict]) -> list[str]:
    return [Path(record["file_name"]).stem for record in part]


def test_a_share_of_the_images() -> None:
    every = records(*[(0,)] * 50)
    train, val = split_records(every, 0.1)
    assert (len(train), len(val)) == (45, 5)
    assert sorted(names(train) + names(val)) == names(every)
    assert split_records(every[::-1], 0.1) == (train, val)
    assert len(split_records(every[:3], 0.1)[1]) == 1
    assert split_records(every, 0) == (every, [])


def test_no_class_is_lost_to_training() -> None:
    every = records(*[(i, 99) for i in range(20)])  # every image has a class of its own
    train, val = split_records(every, 0.5)
    assert len(val) == 1  # but something has to be left to judge by
    assert len(train) == 19
    every = records(*[(0,)] * 30, (1,), (1,))
    for fraction in (0.3, 0.6, 0.9):
        train, _ = split_records(every, fraction)
        assert any(record["annotations"][0]["category_id"] == 1 for record in train)
    train, val = split_records(records((0,), (0,), (1,), (1,)), 0.9)
    assert (len(train), len(val)) == (2, 2)  # one image of a class is enough


def test_validation_shows_something() -> None:
    every = records(*[()] * 95, *[(0,)] * 5)
    train, val = split_records(every, 0.1)
    assert (len(train), len(val)) == (90, 10)
    assert sum(bool(record["annotations"]) for record in val) == 1
    _, val = split_records(records(*[()] * 8, (0,), (1,)), 0.3)  # each has a class of its own
    assert sum(bool(record["annotations"]) for record in val) == 1
    train, val = split_records(records(*[()] * 9, (0,)), 0.3)
    assert (len(train), len(val)) == (7, 3)
    assert any(record["annotations"] for record in train)


def test_every_format_is_divided_alike(tmp_path: Path) -> None:
    """Also where pictures that show nothing have a class called background."""
    validation = {}
    for form in FORMATS:
        folder = tmp_path / form
        entry = write_data(folder, form, make_pictures(9))
        (folder / "names.txt").write_text("brick\ntile\n" if form == "yolo_seg" else "background\nbrick\ntile\n")
        classes = {
            "id_png": folder / "names.txt",
            "color_png": Path(entry.get("PALETTE", "")),
            "yolo_seg": folder / "names.txt",
        }.get(form)
        given = Given(folder / "labels" if form == "yolo_seg" else folder, classes=classes)
        validation[form] = read_own_data(given, None, 0.1, skip_bad=False).images["own_val"]
    assert validation == {form: ["p05.png"] for form in FORMATS}


def test_validation_may_have_a_format_that_takes_no_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("brick\ntile\n")
    write_data(tmp_path / "own", "yolo_seg", make_pictures(5))
    write_data(tmp_path / "val", "coco_instance", make_pictures(3))
    val = Given(tmp_path / "val/coco.json", classes=names)
    data = read_own_data(Given(tmp_path / "own/labels", classes=names), val, 0.1, skip_bad=False)
    assert {name: len(images) for name, images in data.images.items()} == {"own_train": 5, "own_val": 3}


def test_wrong_fractions() -> None:
    with pytest.raises(ValueError, match=r"--val-fraction is -0\.1, expected 0 to less than 1"):
        split_records(records((0,), (0,)), -0.1)
    with pytest.raises(ValueError, match="One image cannot be divided"):
        split_records(records((0,)), 0.5)
