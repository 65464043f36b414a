"""Cityscapes' metrics against Detectron2's evaluators, which write files, and split over processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as FilesInstanceEvaluator
from detectron2.evaluation import CityscapesSemSegEvaluator as FilesSemSegEvaluator
from detectron2.structures import Instances
from PIL import Image

from mask2former.evaluation import cityscapes_evaluation
from mask2former.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator

HEIGHT, WIDTH = 60, 90
THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
LABEL_IDS = [24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture
def scene(tmp_path: Path):
    """Three images of road, void, cars, people, a group of people and a bicycle, and noisy predictions of them."""
    rng = np.random.default_rng(0)
    inputs, outputs = [], []
    for number in range(3):
        name = f"aachen_{number:06d}_000019"
        ids = np.full((HEIGHT, WIDTH), 7)  # road
        ids[:8] = 4  # static: void
        found = []
        for i, instance in enumerate((26000, 26001, 24000, 24001, 24, 33000)):
            top, left = int(rng.integers(10, 30)), i * 15
            ids[top : top + int(rng.integers(12, 28)), left : left + 14] = instance
            found.append(instance)
        folder = tmp_path / "gtFine/val/aachen"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{name}_gtFine_instanceIds.png")
        classes = np.where(ids >= 1000, ids // 1000, ids)
        Image.fromarray(classes.astype(np.uint8)).save(folder / f"{name}_gtFine_labelIds.png")
        inputs.append({"file_name": f"somewhere/{name}_leftImg8bit.png"})
        outputs.append(predict(rng, ids, found))
    MetadataCatalog.get("cityscapes_scene").set(gt_dir=str(tmp_path / "gtFine/val"), thing_classes=THINGS)
    yield inputs, outputs
    MetadataCatalog.remove("cityscapes_scene")


def predict(rng: np.random.Generator, ids: np.ndarray, found: list[int]) -> dict[str, Any]:
    masks, classes = [], []
    for instance in [*found, 26000, 24000, 4]:  # some twice, and one where there is nothing but void
        mask = np.roll(ids == instance, rng.integers(-4, 5, 2).tolist(), axis=(0, 1))
        mask[:, : int(rng.integers(0, 3))] = False
        masks.append(mask)
        label = instance // 1000 if instance >= 1000 else instance
        classes.append(LABEL_IDS.index(label) if label in LABEL_IDS and rng.random() < 0.9 else 2)
    masks.append(np.zeros_like(masks[0]))
    instances = Instances(ids.shape)
    instances.pred_masks = torch.tensor(np.array(masks)).float()
    instances.pred_classes = torch.tensor([*classes, 0])
    instances.scores = torch.tensor(rng.random(len(masks)), dtype=torch.float32)
    train_ids = np.select([ids == 7, ids >= 26000, ids >= 24], [0, 13, 11], 5)
    scores = rng.random((19, *ids.shape)) * 1.02
    np.put_along_axis(scores, train_ids[None], 1, axis=0)
    return {"instances": instances, "sem_seg": torch.tensor(scores)}


@pytest.mark.parametrize(
    ("ours", "theirs", "key"),
    [
        (CityscapesInstanceEvaluator, FilesInstanceEvaluator, "segm"),
        (CityscapesSemSegEvaluator, FilesSemSegEvaluator, "sem_seg"),
    ],
)
def test_the_same_as_from_files(ours, theirs, key, scene, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # cityscapesscripts write a file into the folder where one stands
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
