import json
import math
from functools import partial

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator as Detectron2SemSegEvaluator
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from PIL import Image

from mask2former.evaluation import SemSegEvaluator
from mask2former.evaluation.sem_seg_evaluation import confusion_matrix, summarize_miou


def test_equals_detectron2(make_scene, run, tmp_path):
    scene = make_scene()
    load = partial(load_image_into_numpy_array, copy=True)  # the default is an error with NumPy 2
    theirs = Detectron2SemSegEvaluator(scene.name, output_dir=str(tmp_path / "d2"), sem_seg_loading_fn=load)
    expected = run(theirs, scene.inputs, scene.outputs)
    found = run(SemSegEvaluator(scene.name, str(tmp_path / "ours")), scene.inputs, scene.outputs)

    assert found["sem_seg"].keys() == {
        name for name in expected["sem_seg"] if "Boundary" not in name and "B-I" not in name
    }
    for name, value in found["sem_seg"].items():
        assert value == pytest.approx(expected["sem_seg"][name], rel=1e-12)
    assert 20 < found["sem_seg"]["mIoU"] < 95
    saved = [json.loads((tmp_path / who / "sem_seg_predictions.json").read_text()) for who in ("d2", "ours")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_the_truth_can_come_from_the_panoptic_annotation(mode, make_scene, run, tmp_path):
    scene = make_scene()
    expected = run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)
    evaluator = SemSegEvaluator(scene.name, str(tmp_path))
    for record in evaluator._records.values():
        del record["sem_seg_file_name"]
        file = record["pan_seg_file_name"]
        Image.open(file).convert(mode, palette=Image.Palette.ADAPTIVE).save(file)

    assert run(evaluator, scene.inputs, scene.outputs) == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_truth_may_have_three_equal_channels(mode, make_scene, run, tmp_path):
    scene = make_scene()
    expected = run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)
    for record in scene.inputs:
        file = record["sem_seg_file_name"]
        Image.open(file).convert(mode).save(file)

    assert run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs) == expected


@pytest.mark.parametrize("channels", [2, 3])
def test_a_truth_in_colours_is_an_error(channels, make_scene, run, tmp_path):
    scene = make_scene()
    pixels = np.full((4, 5, channels), (1, 2, 3)[:channels], dtype=np.uint8)
    Image.fromarray(pixels).save(scene.inputs[0]["sem_seg_file_name"])

    with pytest.raises(ValueError, match=rf"classes_1.png: is a colour picture of {channels} channels, expected one"):
        run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)


def test_a_truth_saved_as_jpeg_is_an_error(make_scene, run, tmp_path):
    scene = make_scene()
    Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).save(scene.inputs[0]["sem_seg_file_name"], "jpeg")

    with pytest.raises(ValueError, match=r"classes_1.png: is a JPEG, which changes ids"):
        run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)


def test_no_truth_is_an_error(make_scene, run, tmp_path):
    scene = make_scene()
    evaluator = SemSegEvaluator(scene.name, str(tmp_path))
    evaluator._records[scene.inputs[0]["file_name"]] = {"file_name": "1.png"}

    with pytest.raises(ValueError, match=r"1.png has neither.*SEMANTIC_ON to False"):
        run(evaluator, scene.inputs, scene.outputs)


def test_a_class_that_is_not_in_the_metadata_is_an_error(make_scene, run, tmp_path):
    scene = make_scene(ignore_label=0)  # which makes 255 a class

    with pytest.raises(ValueError, match="class 255; the metadata has 4 stuff_classes and ignore_label 0"):
        run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)


def test_a_negative_class_is_an_error_that_names_it(make_scene, run, tmp_path):
    scene = make_scene()
    evaluator = SemSegEvaluator(scene.name, str(tmp_path))
    record = evaluator._records[scene.inputs[0]["file_name"]]
    del record["sem_seg_file_name"]
    record["segments_info"][0]["category_id"] = -1

    with pytest.raises(ValueError, match="class -1; the metadata has 4 stuff_classes"):
        run(evaluator, scene.inputs, scene.outputs)


def test_one_class_is_not_worth_a_number(make_scene, tmp_path, caplog):
    scene = make_scene()
    SemSegEvaluator(scene.name, str(tmp_path))
    assert "say nothing" not in caplog.text
    metadata = MetadataCatalog.get(scene.name)
    metadata.stuff_classes[1:] = []
    SemSegEvaluator(scene.name, str(tmp_path))
    assert "alone, so every pixel is predicted as it, and the semantic metrics say nothing" in caplog.text


def test_the_confusion_matrix_equals_a_loop():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 3, (5, 7)), rng.integers(0, 4, (5, 7))
    expected = np.zeros((4, 4), dtype=int)
    for p, t in zip(predicted.ravel(), truth.ravel(), strict=True):
        expected[p, t] += 1

    assert np.array_equal(confusion_matrix(predicted, truth, 3), expected)


def test_metrics_by_hand():
    #             truth: a  b  none, of predictions a, b, none
    confusion = np.array([[6, 1, 5], [2, 3, 0], [0, 0, 0]])
    metrics = summarize_miou(confusion, ["a", "b"])

    assert metrics["IoU-a"] == pytest.approx(100 * 6 / 9)
    assert metrics["IoU-b"] == pytest.approx(100 * 3 / 6)
    assert metrics["mIoU"] == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert metrics["fwIoU"] == pytest.approx(100 * (8 * 6 / 9 + 4 * 3 / 6) / 12)
    assert metrics["mACC"] == pytest.approx(100 * (6 / 8 + 3 / 4) / 2)
    assert metrics["pACC"] == pytest.approx(100 * 9 / 12)


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    metrics = summarize_miou(np.array([[4, 0, 0], [1, 0, 0], [0, 0, 0]]), ["a", "b"])

    assert math.isnan(metrics["IoU-b"])
    assert metrics["mIoU"] == metrics["IoU-a"] == 80


def test_without_any_truth_all_is_nan(recwarn):
    metrics = summarize_miou(np.array([[0, 0, 4], [0, 0, 3], [0, 0, 0]]), ["a", "b"])

    assert all(math.isnan(value) for value in metrics.values())
    assert not recwarn.list
