"""Truth and predictions of a picture against the masks that were written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.data.datasets.entry import parse_entry
from mask2former.evaluation import SavedPredictions
from mask2former.evaluation.run_lengths import encode_mask
from mask2former.own_data.report.segments import Segments, predicted_segments, true_segments
from tests.brick_data import make_pictures, write_data


def read(folder: Path, form: str) -> tuple[dict[str, Any], Metadata]:
    dataset = parse_entry("own", write_data(folder / "own", form, make_pictures(1)))
    (record,) = dataset.load()
    return record, Metadata(**dataset.metadata())


def decoded(segments: Segments) -> list[np.ndarray]:
    return [mask_util.decode(mask) for mask in segments.masks]


@pytest.mark.parametrize(("form", "task"), [("coco_instance", "instance"), ("coco_panoptic", "panoptic")])
def test_true_segments_and_a_crowd(tmp_path: Path, form: str, task: str) -> None:
    record, metadata = read(tmp_path, form)
    record["annotations" if task == "instance" else "segments_info"][1]["iscrowd"] = 1
    found = true_segments(record, task, metadata)
    (picture,) = make_pictures(1)
    _, instances = picture.maps()
    np.testing.assert_array_equal(decoded(found)[:2], [instances == 1, instances == 2])
    assert found.classes[:2] == [box.class_id for box in picture.boxes]
    assert found.crowds == [False, True, *([False] if task == "panoptic" else [])]  # of the background


def test_true_classes_and_void(tmp_path: Path) -> None:
    record, metadata = read(tmp_path, "color_png")
    path = record["sem_seg_file_name"]
    classes = np.array(Image.open(path))
    classes[classes == 1] = metadata.ignore_label
    Image.fromarray(classes).save(path)
    found = true_segments(record, "semantic", metadata)
    np.testing.assert_array_equal(decoded(found), [classes == 0, classes == 2, classes == metadata.ignore_label])
    assert (found.classes, found.crowds) == ([0, 2, 3], [False, False, True])


def test_predicted_instances_have_a_score_of_half_or_more(tmp_path: Path) -> None:
    MetadataCatalog.pop("own_val", None)
    MetadataCatalog.get("own_val").set(thing_dataset_id_to_contiguous_id={10: 0, 20: 1})
    masks = [np.arange(12).reshape(3, 4) == i for i in range(3)]
    content = [
        {"image_id": 7, "category_id": category, "score": score, "segmentation": encode_mask(mask)}
        for mask, category, score in zip(masks, (20, 10, 10), (0.5, 0.49, 0.9), strict=True)
    ]
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(content))
    found = predicted_segments(SavedPredictions("own_val", tmp_path, "instance"), {"image_id": 7}, 2)
    np.testing.assert_array_equal(decoded(found), [masks[0], masks[2]])
    assert (found.classes, found.scores, found.crowds) == ([1, 0], [0.5, 0.9], [False, False])
    MetadataCatalog.remove("own_val")
