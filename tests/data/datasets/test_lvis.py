"""Reading LVIS."""

import json

import pytest
from detectron2.structures import BoxMode

from mask2former.data.datasets.lvis import load_lvis

CONTENT = {
    "images": [
        {
            "id": 9,
            "height": 4,
            "width": 6,
            "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [5],
        },
        {"id": 2, "height": 4, "width": 6, "coco_url": "http://images.cocodataset.org/val2017/000000000002.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 5, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2]]}
    ],
}


def test_records(tmp_path):
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(CONTENT))
    first, second = load_lvis(file, tmp_path / "coco")
    assert first == {
        "file_name": str(tmp_path / "coco/val2017/000000000002.jpg"),
        "image_id": 2,
        "height": 4,
        "width": 6,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "annotations": [],
    }
    assert second["file_name"] == str(tmp_path / "coco/train2017/000000000009.jpg")
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([3], [5])
    [annotation] = second["annotations"]
    assert annotation == {
        "bbox": [0, 0, 2, 2],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 4,
        "segmentation": [[0, 0, 2, 0, 2, 2]],
    }
    assert load_lvis(file, tmp_path, {5: 70})[1]["annotations"][0]["category_id"] == 70


def test_test_sets_have_no_annotations(tmp_path):
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps({"images": CONTENT["images"]}))
    assert [record["annotations"] for record in load_lvis(file, tmp_path)] == [[], []]


@pytest.mark.parametrize("segmentation", [[], [[0, 0, 1, 1]], [[0, 0, 1, 1, 2, 2, 3]]])
def test_bad_polygons_are_an_error(segmentation, tmp_path):
    file = tmp_path / "lvis.json"
    file.write_text(
        json.dumps({**CONTENT, "annotations": [{**CONTENT["annotations"][0], "segmentation": segmentation}]})
    )
    with pytest.raises(ValueError, match=r"lvis.json: annotation 1 has no polygons, or one that .* Download"):
        load_lvis(file, tmp_path)
