"""Cityscapes' metrics against Detectron2's evaluators, which write files, and split over processes."""

from pathlib import Path

import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as instance_api  # noqa: N813
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as FilesInstanceEvaluator
from detectron2.evaluation import CityscapesSemSegEvaluator as FilesSemSegEvaluator

from mask2former.evaluation import cityscapes_evaluation
from mask2former.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from tests.evaluation import city


@pytest.fixture
def scene(tmp_path: Path):
    """Inputs and outputs of three images, registered as "cityscapes_scene"."""
    yield city.write(tmp_path)
    MetadataCatalog.remove("cityscapes_scene")


@pytest.mark.parametrize(
    ("ours", "theirs", "key"),
    [
        (CityscapesInstanceEvaluator, FilesInstanceEvaluator, "segm"),
        (CityscapesSemSegEvaluator, FilesSemSegEvaluator, "sem_seg"),
    ],
)
def test_the_same_as_from_files(ours, theirs, key, scene, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # cityscapesscripts write a file into the folder where one stands
    monkeypatch.setattr(instance_api, "writeDict2JSON", lambda *_: None)  # which fails with NumPy 2.3's counts
    results = run(ours("cityscapes_scene"), *scene)
    expected = run(theirs("cityscapes_scene"), *scene)
    assert list(results) == list(expected) == [key]
    assert results[key] == pytest.approx(expected[key], abs=1e-9)
    assert all(1 < value < 95 for value in results[key].values())


def test_nothing_is_written(scene, run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(CityscapesInstanceEvaluator("cityscapes_scene"), *scene)
    run(CityscapesSemSegEvaluator("cityscapes_scene"), *scene)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("kind", [CityscapesInstanceEvaluator, CityscapesSemSegEvaluator])
def test_processes_are_summed(kind, scene, run, monkeypatch):
    """Two evaluators that saw an image more or less, as the processes of one or of several machines do."""
    inputs, outputs = scene
    expected = run(kind("cityscapes_scene"), inputs, outputs)
    parts = []
    for part in (slice(0, 2), slice(2, 3)):
        evaluator = kind("cityscapes_scene")
        evaluator.process(inputs[part], outputs[part])
        monkeypatch.setattr(cityscapes_evaluation.comm, "gather", lambda counted: parts.append(counted) or [counted])
        with pytest.raises(ValueError, match=r"of 3 images have no prediction, such as 'aachen_00000"):
            evaluator.evaluate()
    monkeypatch.setattr(cityscapes_evaluation.comm, "gather", lambda _: parts)
    assert evaluator.evaluate() == {key: pytest.approx(values) for key, values in expected.items()}
    monkeypatch.setattr(cityscapes_evaluation.comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() is None


def test_an_image_of_another_split_is_an_error(scene):
    evaluator = CityscapesSemSegEvaluator("cityscapes_scene")
    with pytest.raises(ValueError, match=r"b_1_2_leftImg8bit.png: has no b_1_2_gtFine_labelIds.png in .*gtFine/val"):
        evaluator.process([{"file_name": "x/b_1_2_leftImg8bit.png"}], [scene[1][0]])


def test_no_annotations_are_an_error(tmp_path):
    MetadataCatalog.get("cityscapes_nothing").set(gt_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no \*/\*_gtFine_instanceIds.png to compare predictions with"):
        CityscapesInstanceEvaluator("cityscapes_nothing")
    MetadataCatalog.remove("cityscapes_nothing")
