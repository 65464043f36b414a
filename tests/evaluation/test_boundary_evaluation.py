"""Boundary AP against the definition, written down plainly."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from pycocotools.coco import COCO

from mask2former.evaluation import BoundaryEvaluator, InstanceSegEvaluator, build_evaluator
from mask2former.evaluation.boundary_evaluation import boundary_ap, boundary_of


def naive_boundary(mask: np.ndarray, ratio: float = 0.02) -> np.ndarray:
    """The pixels of the mask from which d steps to a neighbour (of eight) can leave it or the picture."""
    height, width = mask.shape
    distance = max(1, round(ratio * (height**2 + width**2) ** 0.5))
    result = np.zeros(mask.shape, dtype=bool)
    for row, column in np.argwhere(mask):
        for y in range(row - distance, row + distance + 1):
            for x in range(column - distance, column + distance + 1):
                if not (0 <= y < height and 0 <= x < width and mask[y, x]):
                    result[row, column] = True
    return result


def naive_ious(predicted: list[np.ndarray], truth: list[np.ndarray]) -> list[list[float]]:
    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return (a & b).sum() / (a | b).sum()

    outlines, true_outlines = (list(map(naive_boundary, masks)) for masks in (predicted, truth))
    return [
        [min(overlap(a, b), overlap(c, d)) for b, d in zip(truth, true_outlines, strict=True)]
        for a, c in zip(predicted, outlines, strict=True)
    ]


def naive_ap(images: list[tuple[list[float], list[list[float]]]], threshold: float) -> float:
    """COCO's AP of one class at one threshold: each detection, best first, takes the best annotation that is free.

    Args:
        images: the scores of the detections, and their IoUs with the annotations.
        threshold: of the IoU.
    """
    outcomes = []
    for scores, table in images:
        free = list(range(len(table[0])))
        for score, row in sorted(zip(scores, table, strict=True), key=lambda pair: -pair[0]):
            ious = [row[i] for i in free]
            hit = bool(ious) and max(ious) >= threshold
            if hit:
                free.pop(int(np.argmax(ious)))
            outcomes.append((score, hit))
    hits = np.array([hit for _, hit in sorted(outcomes, key=lambda outcome: -outcome[0])])
    found = np.cumsum(hits)
    recall, precision = found / sum(len(table[0]) for _, table in images), found / np.arange(1, len(hits) + 1)
    return np.mean([max(precision[recall >= level], default=0) for level in np.linspace(0, 1, 101)])


def blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Some discs that may reach over the border, with a hole."""
    rows, columns = np.indices(size)
    mask = np.zeros(size, dtype=bool)
    for _ in range(3):
        y, x, radius = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(6, 20)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    mask[size[0] // 2 - 2 : size[0] // 2, size[1] // 2 : size[1] // 2 + 3] = False
    return mask


@pytest.mark.parametrize(("size", "ratio"), [((40, 60), 0.02), ((61, 35), 0.08), ((30, 30), 0.2), ((50, 20), 0.0)])
def test_boundary(size, ratio):
    rng = np.random.default_rng(0)
    for _ in range(3):
        mask = blob(rng, size)
        assert 0 < naive_boundary(mask, ratio).sum() <= mask.sum()
        np.testing.assert_array_equal(boundary_of(mask, ratio), naive_boundary(mask, ratio))


def test_boundary_of_a_full_and_of_an_empty_mask():
    full = boundary_of(np.ones((200, 200), dtype=np.uint8))  # round(0.02 * 282.8) is 6
    assert not full[6:-6, 6:-6].any()
    assert full.sum() == 200**2 - 188**2
    assert not boundary_of(np.zeros((20, 30), dtype=bool)).any()


@pytest.fixture
def scene(tmp_path: Path):
    """Blobs of two images, predictions that lack a part, and the COCO file of the truth."""
    rng = np.random.default_rng(1)
    size = (50, 70)
    truth = {image: [blob(rng, size) for _ in range(4)] for image in (1, 2)}
    predicted = {}
    for image, masks in truth.items():
        cut = [mask.copy() for mask in masks[:2] + masks]
        for number, mask in enumerate(cut):
            mask[:, : 6 * number] = False
        predicted[image] = [(float(rng.random()), mask) for mask in [*cut, blob(rng, size)] if mask.any()]
    annotations = [
        {"id": i, "image_id": image, "category_id": 5, "iscrowd": 0, **encode(mask)}
        for i, (image, mask) in enumerate([(image, mask) for image, masks in truth.items() for mask in masks], 1)
    ]
    content = {
        "info": {},
        "images": [{"id": image, "height": size[0], "width": size[1]} for image in truth],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "blob"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return truth, predicted, tmp_path / "truth.json"


def encode(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": mask_util.toBbox(rle).tolist(),
    }


def test_ap(scene):
    truth, predicted, path = scene
    results = [
        {"image_id": image, "category_id": 5, "score": score, **encode(mask)}
        for image, detections in predicted.items()
        for score, mask in detections
    ]
    metrics = boundary_ap(COCO(str(path)), results)
    images = [
        ([score for score, _ in detections], naive_ious([mask for _, mask in detections], truth[image]))
        for image, detections in predicted.items()
    ]
    by_threshold = [100 * naive_ap(images, threshold) for threshold in np.linspace(0.5, 0.95, 10)]
    assert metrics["AP50"] == pytest.approx(by_threshold[0])
    assert metrics["AP75"] == pytest.approx(by_threshold[5])
    assert metrics["AP"] == pytest.approx(np.mean(by_threshold))
    assert 2 < metrics["AP75"] < metrics["AP"] < metrics["AP50"] < 90
    assert np.isnan(metrics["APl"])


def test_no_predictions(scene):
    assert boundary_ap(COCO(str(scene[2])), [])["AP"] == 0


@pytest.mark.parametrize("evaluator_type", ["coco_panoptic_seg", "ade20k_panoptic_seg"])
def test_with_the_others_in_one_pass(evaluator_type, make_scene, config, run):
    scene = make_scene(evaluator_type=evaluator_type)
    results = run(build_evaluator(config(TEST__BOUNDARY_AP=True), scene.name), scene.inputs, scene.outputs)
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg", "boundary"]
    # The pictures are small, so nearly all of an object is near its outline.
    assert 0 < results["boundary"]["AP"] <= results["segm"]["AP"]


def test_classes_are_kept_apart(make_scene, run):
    """Things whose contiguous ids are not the first."""
    scene = make_scene(things=(1, 2))
    results = run(BoundaryEvaluator(scene.name, output_dir=None, max_dets_per_image=100), scene.inputs, scene.outputs)
    assert results["boundary"]["AP50"] > 10


@pytest.mark.parametrize(("kind", "name"), [(BoundaryEvaluator, "boundary"), (InstanceSegEvaluator, "segm")])
def test_as_many_instances_count_as_are_asked_for(make_scene, run, kind, name):
    scene = make_scene(images=2)
    output = scene.outputs[0]
    found = output["instances"]
    worse = [type(found).cat([found])[:1] for _ in range(10)]
    for instances in worse:  # empty, and before all others
        instances.pred_masks, instances.scores = torch.zeros_like(instances.pred_masks), instances.scores * 0 + 2
    output["instances"] = type(found).cat([*worse, found])
    ap = {}
    for count in (10, 100):
        evaluator = kind(scene.name, output_dir=None, max_dets_per_image=count)
        ap[count] = run(evaluator, scene.inputs, scene.outputs)[name]["AP50"]
    assert ap[10] < ap[100]


def test_without_instances_it_is_an_error(make_scene, config):
    scene = make_scene(evaluator_type="sem_seg")
    with pytest.raises(
        ValueError, match=r"TEST.BOUNDARY_AP is on, but data set 'scene' .* is not evaluated for instances"
    ):
        build_evaluator(config(TEST__BOUNDARY_AP=True), scene.name)
