"""What evaluators save is read back as the model said it."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from mask2former.evaluation import SavedPredictions, build_evaluator, find_predictions
from mask2former.evaluation.saved_predictions import read_predictions

from .conftest import HEIGHT, WIDTH


@pytest.fixture
def saved(make_scene, config, run, tmp_path):
    """A scene and the folder of its predictions."""
    scene = make_scene(images=5)
    run(build_evaluator(config(), scene.name), scene.inputs, scene.outputs)
    return scene, tmp_path / "out" / "inference"


def test_every_task_is_found(saved):
    _, folder = saved
    assert list(find_predictions(folder)) == ["panoptic", "instance", "semantic"]


def test_panoptic(saved):
    scene, folder = saved
    predictions = SavedPredictions(scene.name, folder, "panoptic")
    for record, output in zip(scene.inputs, scene.outputs, strict=True):
        ids, segments = predictions.panoptic(record)
        np.testing.assert_array_equal(ids, output["panoptic_seg"][0].numpy())
        assert segments == output["panoptic_seg"][1]


def test_instances(saved):
    scene, folder = saved
    predictions = SavedPredictions(scene.name, folder, "instance")
    for record, output in zip(scene.inputs, scene.outputs, strict=True):
        masks, classes, scores = predictions.instances(record, (HEIGHT, WIDTH), threshold=0.3)
        expected = output["instances"]
        order = np.argsort(-expected.scores.numpy(), kind="stable")
        order = order[expected.scores.numpy()[order] >= 0.3]
        assert masks.shape == (len(order), HEIGHT, WIDTH)
        np.testing.assert_array_equal(masks, expected.pred_masks.numpy()[order])
        assert classes == expected.pred_classes.numpy()[order].tolist()
        assert scores == pytest.approx(expected.scores.numpy()[order].tolist())


def test_semantic(saved):
    scene, folder = saved
    predictions = SavedPredictions(scene.name, folder, "semantic")
    for record, output in zip(scene.inputs, scene.outputs, strict=True):
        np.testing.assert_array_equal(
            predictions.semantic(record, (HEIGHT, WIDTH)), output["sem_seg"].argmax(0).numpy()
        )
    nothing = predictions.semantic({"file_name": "other.png"}, (HEIGHT, WIDTH))
    assert (nothing == len(MetadataCatalog.get(scene.name).stuff_classes)).all()


def test_what_was_not_saved(saved, tmp_path: Path):
    scene, folder = saved
    (folder / "sem_seg_predictions.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no semantic predictions, only panoptic and instance ones"):
        SavedPredictions(scene.name, folder, "semantic")
    with pytest.raises(FileNotFoundError, match=r"has no predictions; run train_net\.py --eval-only"):
        find_predictions(tmp_path)
    with pytest.raises(ValueError, match=r"other\.png: there is no prediction of this image"):
        SavedPredictions(scene.name, folder, "panoptic").panoptic({"file_name": "other.png", "image_id": 99})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("panoptic_predictions.json", "[]", "holds a list, expected the dict of predictions"),
        ("coco_instances_results.json", "{}", "holds a dict, expected the list of predictions"),
        ("sem_seg_predictions.json", '[{"file_na', "is not JSON .* evaluate again if the evaluation was stopped"),
    ],
)
def test_files_that_hold_no_predictions(name: str, content: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_predictions(tmp_path / name)
