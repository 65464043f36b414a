import copy
import json
import math

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.utils import rgb2id
from PIL import Image

from mask2former.evaluation import PanopticEvaluator


def test_equals_detectron2(make_scene, run, tmp_path):
    scene = make_scene(images=12)
    outputs = copy.deepcopy(scene.outputs)  # Detectron2's changes what it is given
    expected = run(COCOPanopticEvaluator(scene.name, str(tmp_path / "d2")), scene.inputs, outputs)
    found = run(PanopticEvaluator(scene.name, str(tmp_path / "ours")), scene.inputs, scene.outputs)

    assert found["panoptic_seg"] == pytest.approx(expected["panoptic_seg"], rel=1e-12)
    assert 20 < found["panoptic_seg"]["PQ"] < 80


def test_a_perfect_prediction_has_quality_100(make_scene, run, tmp_path):
    scene = make_scene()
    things = MetadataCatalog.get(scene.name).thing_dataset_id_to_contiguous_id.values()
    perfect = []
    for image in scene.inputs:
        ids = rgb2id(np.array(Image.open(image["pan_seg_file_name"])))
        infos = [{**info, "isthing": info["category_id"] in things} for info in image["segments_info"]]
        perfect.append({"panoptic_seg": (ids, infos)})

    found = run(PanopticEvaluator(scene.name, str(tmp_path)), scene.inputs, perfect)
    assert set(found["panoptic_seg"].values()) == {100}


@pytest.mark.parametrize(("things", "missing"), [((0, 1, 2, 3), "st"), ((), "th")])
def test_without_stuff_or_things_that_group_is_nan(make_scene, run, tmp_path, things, missing):
    scene = make_scene(things=things)
    found = run(PanopticEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)["panoptic_seg"]

    assert all(math.isnan(found[f"{name}_{missing}"]) for name in ("PQ", "SQ", "RQ"))
    assert found["PQ"] == found["PQ_th" if missing == "st" else "PQ_st"] > 0


def test_without_truth_and_prediction_all_is_nan(make_scene, run, tmp_path):
    scene = make_scene(images=1)
    found = run(PanopticEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)["panoptic_seg"]

    assert all(math.isnan(value) for value in found.values())


def test_predictions_are_saved_and_outputs_left_alone(make_scene, run, tmp_path):
    scene = make_scene()
    before = copy.deepcopy([output["panoptic_seg"][1] for output in scene.outputs])
    run(PanopticEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)
    saved = json.loads((tmp_path / "panoptic_predictions.json").read_text())

    assert [output["panoptic_seg"][1] for output in scene.outputs] == before
    assert {p["image_id"] for p in saved["annotations"]} == {image["image_id"] for image in scene.inputs}
    assert all((tmp_path / "panoptic_predictions" / p["file_name"]).is_file() for p in saved["annotations"])


def test_an_image_without_prediction_is_an_error(make_scene, run, tmp_path):
    scene = make_scene()

    with pytest.raises(ValueError, match="1 of 6 images have no prediction, such as image_id 6"):
        run(PanopticEvaluator(scene.name, str(tmp_path)), scene.inputs[:-1], scene.outputs[:-1])


def test_an_image_without_annotation_is_an_error(make_scene, run, tmp_path):
    scene = make_scene()
    scene.inputs[0]["image_id"] = "unknown"

    with pytest.raises(ValueError, match=r"image_id 'unknown', which the panoptic annotations.*do not have.*such as 1"):
        run(PanopticEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)
