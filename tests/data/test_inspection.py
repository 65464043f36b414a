from pathlib import Path

import numpy as np
import pytest
from detectron2.data import Metadata

from mask2former.data.datasets.entry import parse_entry
from mask2former.data.inspection import Inspection, inspect_records
from tests.brick_data import FORMATS, NAMES, make_pictures, write_data


def inspect(root: Path, form: str, count: int = 5) -> Inspection:
    dataset = parse_entry("own", write_data(root / "own", form, make_pictures(count)))
    records = dataset.load()
    return inspect_records(records, Metadata(**dataset.metadata()))


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "color_png"])
def test_counts_against_the_pictures(data_root: Path, form: str) -> None:
    pictures = make_pictures(5)
    found = inspect(data_root, form)
    boxes = [box for picture in pictures for box in picture.boxes]
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in boxes]
    assert found.images == 5
    assert (found.heights, found.widths) == ((48, 48, 48), (64, 64, 64))
    for i, name in enumerate(NAMES):
        count = found.classes[i]
        assert (count.name, count.isthing) == (name, True)
        assert count.segments == sum(box.class_id == i for box in boxes)
        assert count.images == sum(any(box.class_id == i for box in picture.boxes) for picture in pictures)
        assert count.pixels == sum(area for area, box in zip(areas, boxes, strict=True) if box.class_id == i)
    with_stuff = form in ("coco_panoptic", "id_png")
    assert found.most_segments == 2 + with_stuff
    assert found.most_in_area == pytest.approx((2 + with_stuff) / (48 * 64) * 1e6)
    assert found.object_sizes[2] == pytest.approx(np.median(np.sqrt(areas)))
    assert found.void == (0 if with_stuff else None)
    assert found.empty == 1  # that of nothing but background, if that is a class
    assert Inspection.from_json(found.to_json()) == found


def test_table(data_root: Path) -> None:
    lines = inspect(data_root, "color_png").table().splitlines()
    assert lines[0].split() == ["images", "5,", "of", "which", "1", "show", "nothing", "to", "find"]
    assert lines[1].split() == ["height", "48"]
    assert not any(line.startswith("size of objects") for line in lines)  # there are classes alone
    assert ["class", "kind", "images", "segments", "pixels"] in [line.split() for line in lines]
    background = next(line for line in lines if line.startswith("background"))
    assert background.split()[:4] == ["background", "stuff", "5", "5"]


def test_crowds_and_void() -> None:
    metadata = Metadata(name="a", stuff_classes=["cell"], thing_dataset_id_to_contiguous_id={1: 0})
    segments = [
        {"category_id": 0, "iscrowd": 0, "area": 4, "bbox": [3, 0, 2, 2]},
        {"category_id": 0, "iscrowd": 1, "area": 6, "bbox": [0, 0, 6, 1]},
        {"category_id": 0, "iscrowd": 0, "area": 0, "bbox": [0, 0, 0, 0]},
    ]
    record = {"file_name": "a/b.png", "height": 4, "width": 5, "segments_info": segments}
    found = inspect_records([record, {**record, "segments_info": []}], metadata)
    assert (found.crowds, found.void, found.empty, found.fullest) == (1, 0.9, 1, "b.png")
    assert found.classes[0].segments == 1
    assert found.longest_object == 2
    assert ("size of objects, pixels", "2, 2, 2, 2, 2") in [(name, value[:13]) for name, value in found.rows()]


def test_stuff_is_something_to_find_unless_it_is_background() -> None:
    metadata = Metadata(
        name="a", stuff_classes=["cell", "background", "road"], thing_dataset_id_to_contiguous_id={1: 0}
    )
    record = {"file_name": "b.png", "height": 1, "width": 4}
    segment = {"iscrowd": 0, "area": 2, "bbox": [0, 0, 2, 1]}
    records = [
        {**record, "segments_info": [{**segment, "category_id": category} for category in found]}
        for found in ([1], [1, 2], [0, 1], [0], [2], [])
    ]
    assert inspect_records(records, metadata).empty == 2


def test_nothing() -> None:
    metadata = Metadata(name="a", thing_classes=["cell"], thing_dataset_id_to_contiguous_id={1: 0})
    found = inspect_records([], metadata)
    assert (found.images, found.most_segments, found.void) == (0, 0, None)
    assert "images" in found.table()
