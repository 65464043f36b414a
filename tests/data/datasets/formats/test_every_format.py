"""What all formats have in common: the same scene gives the same targets, faults are all told, bad data is left out."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from mask2former.data.dataset_mappers import dataset_mapper_class
from mask2former.data.datasets.entry import parse_entry
from mask2former.data.datasets.faults import DataError
from mask2former.data.datasets.own import CustomDataset
from tests.brick_data import FORMATS, NAMES, Picture, make_pictures, write_data

Entry = dict[str, Any]


@pytest.fixture(params=list(FORMATS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pictures() -> list[Picture]:
    return make_pictures(5)


@pytest.fixture
def entry(form: str, pictures: list[Picture], data_root: Path) -> Entry:
    return write_data(data_root / "own", form, pictures)


def targets(cfg: CfgNode, dataset: CustomDataset) -> dict[str, set[tuple[str, bytes]]]:
    """Of every image the class names and masks of the things, or of all classes where there are none."""
    metadata = dataset.metadata()
    things = metadata["thing_classes"]
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_instance" if things else "mask_former_semantic"
    names = things or metadata["stuff_classes"]
    mapper = dataset_mapper_class(cfg)(cfg, is_train=True, augmentations=[])
    found = {}
    for record in dataset.load():
        instances = mapper(record)["instances"]
        pairs = zip(instances.gt_classes.tolist(), instances.gt_masks.numpy(), strict=True)
        found[os.path.basename(record["file_name"])] = {(names[i], mask.tobytes()) for i, mask in pairs}
    return found


def test_same_targets(cfg: CfgNode, form: str, entry: Entry, pictures: list[Picture]) -> None:
    expected = {}
    for picture in pictures:
        classes, instances = picture.maps()
        if form == "color_png":
            masks = [(name, classes == i) for i, name in enumerate(["background", *NAMES])]
        else:
            masks = [(NAMES[box.class_id], instances == i) for i, box in enumerate(picture.boxes, 1)]
        expected[picture.name] = {(name, mask.tobytes()) for name, mask in masks if mask.any()}
    assert targets(cfg, parse_entry("own", entry)) == expected


def test_a_list_gives_the_same_before_and_after_all_are_converted(
    cfg: CfgNode, entry: Entry, data_root: Path, form: str
) -> None:
    (data_root / "list.txt").write_text("p01\np04.png\n")
    chosen = parse_entry("own", entry | {"LIST": "list.txt"})
    before = targets(cfg, chosen)
    assert before.keys() == {"p01.png", "p04.png"}
    everything = targets(cfg, parse_entry("own", entry))
    (data_root / "list.txt").write_text("p01\np04.png\n\n")  # another time, so it is made anew
    assert targets(cfg, chosen) == before == {name: everything[name] for name in before}
    if "panoptic_root" in chosen.metadata():
        again = parse_entry("own", entry | {"LIST": "list.txt"}).load()
        assert all(Path(record["pan_seg_file_name"]).resolve().is_file() for record in again)
        for converted in (data_root.parent / "cache/datasets").glob("images-*"):
            if converted.is_dir():  # the others are locks
                shutil.rmtree(converted)
        assert targets(cfg, chosen) == before
    (data_root / "list.txt").write_text("p01\nq.png\n")
    with pytest.raises(FileNotFoundError, match=r"list\.txt: names q\.png, but .* has no such image"):
        chosen.load()


def test_damaged_images(entry: Entry, data_root: Path) -> None:
    images = data_root / "own/images"
    (images / "p00.png").write_bytes((images / "p00.png").read_bytes()[:-2000])
    (images / "p02.png").write_bytes(b"")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(images / "p04.png")
    (data_root / "list.txt").write_text("p01\np03\n")
    chosen = parse_entry("own", entry | {"LIST": "list.txt"})
    assert len(chosen.load()) == 2  # the others' faults do not matter
    with pytest.raises(DataError, match=r"faults in the data") as error:
        parse_entry("own", entry).load()
    text = str(error.value)
    # YOLO's labels fit an image of any size.
    sizes = entry["FORMAT"] != "yolo_seg"
    assert len({fault.image for fault in error.value.faults}) == 2 + sizes
    assert "p00.png: cannot be read as an image" in text
    assert "p02.png: cannot be read as an image" in text
    assert "--skip-bad" in text
    records = parse_entry("own", entry | {"SKIP_BAD": True}).load()
    left = {"p01.png", "p03.png"} | ({"p04.png"} if not sizes else set())
    assert {os.path.basename(record["file_name"]) for record in records} == left
    (data_root / "list.txt").write_text("p01\np03\n\n")  # another time, so it is made anew, out of what all became
    assert len(chosen.load()) == 2


def test_links_to_nothing_are_faults_of_their_pictures(entry: Entry, data_root: Path) -> None:
    (data_root / "own/images/p01.png").unlink()
    (data_root / "own/images/p01.png").symlink_to(data_root / "not fetched")
    with pytest.raises(DataError, match=r"p01\.png: no such file|p01\.png'?, but .* is not an image"):
        parse_entry("own", entry).load()
    records = parse_entry("own", entry | {"SKIP_BAD": True}).load()
    assert [os.path.basename(record["file_name"]) for record in records] == ["p00.png", "p02.png", "p03.png", "p04.png"]


def test_what_is_skipped_is_logged(entry: Entry, data_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data_root / "own/images/p02.png").write_bytes(b"no image")
    with caplog.at_level("WARNING", "mask2former"):
        parse_entry("own", entry | {"SKIP_BAD": True}).load()
    assert "left out, since SKIP_BAD is on" in caplog.text
    assert "p02.png: cannot be read as an image" in caplog.text


def test_nothing_left(entry: Entry, data_root: Path) -> None:
    for image in (data_root / "own/images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image is left to use"):
        parse_entry("own", entry | {"SKIP_BAD": True}).load()


STRANGE = ["./a.png", "b//./c.png", " d.png", "e\u2028f.png", "#g.PNG", "h.i.png", "ü é.png"]


def test_strange_names_can_be_listed(data_root: Path) -> None:
    """By the names that the records' files have, which is what ``mask2former train`` lists."""
    entry = write_data(data_root / "own", "coco_instance", make_pictures(7))
    content = json.loads(Path(entry["ANNOTATIONS"]).read_text())
    (data_root / "own/images/b").mkdir()
    for image, name in zip(content["images"], STRANGE, strict=True):
        (data_root / "own/images" / image["file_name"]).rename(data_root / "own/images" / name)
        image["file_name"] = name
    Path(entry["ANNOTATIONS"]).write_text(json.dumps(content))
    images = Path(entry["IMAGES"])
    names = [Path(record["file_name"]).relative_to(images).as_posix() for record in parse_entry("own", entry).load()]
    for chosen in (names[::2], names[1::2]):
        (data_root / "list.txt").write_text("".join(f"{name}\n" for name in chosen), "utf-8")
        records = parse_entry("own", entry | {"LIST": "list.txt"}).load()
        assert [Path(record["file_name"]).relative_to(images).as_posix() for record in records] == chosen


def test_segments_that_windows_names(data_root: Path) -> None:
    entry = write_data(data_root / "own", "coco_panoptic", make_pictures(2))
    content = json.loads(Path(entry["ANNOTATIONS"]).read_text())
    segments = Path(entry["SEGMENTS"])
    (segments / "b").mkdir()
    for annotation, name in zip(content["annotations"], ("b/a.png", "a.png"), strict=True):
        (segments / annotation["file_name"]).rename(segments / name)
        annotation["file_name"] = ".\\" + name.replace("/", "\\")
    Path(entry["ANNOTATIONS"]).write_text(json.dumps(content))
    records = parse_entry("own", entry).load()
    assert [record["pan_seg_file_name"] for record in records] == [str(segments / "b/a.png"), str(segments / "a.png")]


def test_links_that_lead_back_are_not_followed(entry: Entry, data_root: Path) -> None:
    number = len(parse_entry("own", entry).load())
    (data_root / "own/images/all").symlink_to(data_root / "own")
    (data_root / "elsewhere").mkdir()
    (data_root / "elsewhere/back").symlink_to(data_root / "own/images")
    (data_root / "own/images/there").symlink_to(data_root / "elsewhere")
    assert len(parse_entry("own", entry).load()) == number
