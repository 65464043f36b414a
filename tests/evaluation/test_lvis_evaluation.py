"""LVIS' AP by its rules, and against the package ``lvis`` where that is installed."""

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from mask2former.evaluation import LVISEvaluator, lvis_evaluation
from mask2former.evaluation.lvis_evaluation import federated_ap

SIZE = 200


def box_mask(left: int, top: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[top : top + height, left : left + width] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotation(number: int, image: int, category: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "segmentation": box_mask(*box),
    }


def detection(image: int, category: int, score: float, box: tuple[int, int, int, int]) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "score": score,
        "bbox": list(box),
        "segmentation": box_mask(*box),
    }


@pytest.fixture
def truth(tmp_path) -> Callable[..., COCO]:
    def make(images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: int = 3) -> COCO:
        content = {
            "images": [{"height": SIZE, "width": SIZE, **image} for image in images],
            "annotations": annotations,
            "categories": [{"id": i, "name": f"c{i}", "frequency": "rcf"[i % 3]} for i in range(1, categories + 1)],
        }
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(content))
        return COCO(str(path))

    return make


BOX, ELSEWHERE = (10, 10, 40, 40), (100, 100, 40, 40)


@pytest.mark.parametrize(
    ("second_image", "expected"),
    [
        # The false detection on the second image, whose score is higher, counts if that is known to have none ...
        ({"neg_category_ids": [1]}, 50),
        # ... and not if nobody has looked,
        ({"neg_category_ids": [2]}, 100),
        ({}, 100),
    ],
)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_images_without_the_class_count_only_if_that_is_known(iou_type, second_image, expected, truth):
    coco = truth([{"id": 1}, {"id": 2, **second_image}], [annotation(1, 1, 1, BOX)])
    metrics = federated_ap(coco, [detection(1, 1, 0.5, BOX), detection(2, 1, 0.9, BOX)], iou_type)
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "APc")] == pytest.approx([expected] * 4)


@pytest.mark.parametrize(("more", "expected"), [([], 50), ([1], 100), ([2], 50)])
def test_further_detections_are_right_or_wrong_only_if_all_is_annotated(more, expected, truth):
    coco = truth([{"id": 1, "not_exhaustive_category_ids": more}], [annotation(1, 1, 1, BOX)])
    metrics = federated_ap(coco, [detection(1, 1, 0.5, BOX), detection(1, 1, 0.9, ELSEWHERE)], "segm")
    assert metrics["AP"] == pytest.approx(expected)


def test_groups_of_classes_and_sizes(truth):
    large = (50, 50, 120, 120)
    annotations = [annotation(1, 1, 1, (10, 10, 20, 20)), annotation(2, 1, 2, BOX), annotation(3, 1, 3, large)]
    results = [detection(1, 1, 0.5, (10, 10, 20, 20)), detection(1, 3, 0.5, ELSEWHERE)]
    metrics = federated_ap(truth([{"id": 1}], annotations), results, "segm")
    assert [round(metrics[f"AP{group}"]) for group in ("", "s", "m", "l", "r", "c", "f")] == [33, 100, 0, 0, 0, 100, 0]


def test_no_predictions_and_no_instances(truth):
    coco = truth([{"id": 1}], [annotation(1, 1, 1, BOX)])
    assert np.isnan(list(federated_ap(coco, [], "segm").values())).all()
    metrics = federated_ap(coco, [detection(1, 1, 0.5, BOX)], "segm")
    assert metrics["AP"] == pytest.approx(100)
    assert np.isnan([metrics["APs"], metrics["APl"], metrics["APr"], metrics["APf"]]).all()


def test_only_the_surest_detections_of_an_image_are_kept(make_scene, run, tmp_path, monkeypatch):
    scene = make_scene()
    found = [score for output in scene.outputs for score in output["instances"].scores.tolist()]
    monkeypatch.setattr(lvis_evaluation, "MAX_DETECTIONS", 1)
    run(LVISEvaluator(scene.name, output_dir=str(tmp_path / "out")), scene.inputs, scene.outputs)
    kept = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    surest = [output["instances"].scores.max().item() for output in scene.outputs if len(output["instances"])]
    assert [detection["score"] for detection in kept] == surest
    assert len(found) > len(kept) > 2


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_against_lvis(iou_type, truth, monkeypatch, tmp_path):
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # what that package lacks since NumPy 1.24
    logging.getLogger("lvis").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    categories = 7

    def random_box() -> tuple[int, int, int, int]:
        left, top = rng.integers(0, 60, 2).tolist()
        return left, top, *rng.integers(8, 140, 2).tolist()

    images, annotations, results = [], [], []
    for image in range(1, 13):
        shown = rng.choice(categories, 3, replace=False) + 1
        absent = [category for category in range(1, categories + 1) if category not in shown]
        images.append(
            {
                "id": image,
                "neg_category_ids": rng.choice(absent, 2, replace=False).tolist(),
                "not_exhaustive_category_ids": shown[:1].tolist(),
            }
        )
        for category in rng.choice(shown, 6).tolist():
            box = random_box()
            annotations.append(annotation(len(annotations) + 1, image, category, box))
            for _ in range(int(rng.integers(0, 3))):
                near = tuple(int(value) for value in np.array(box) + rng.integers(-3, 4, 4).clip(min=-box[0]))
                guessed = category if rng.random() < 0.8 else int(rng.integers(1, categories + 1))
                left, top, width, height = (max(0, near[0]), max(0, near[1]), near[2], near[3])
                results.append(detection(image, guessed, float(rng.random()), (left, top, width, height)))
        for category in rng.integers(1, categories + 1, 4).tolist():
            results.append(detection(image, category, float(rng.random()), random_box()))
    coco = truth(images, annotations, categories)
    expected = lvis.LVIS(str(tmp_path / "truth.json"))
    theirs = [dict(result) for result in results]
    if iou_type == "segm":
        for result in theirs:
            del result["bbox"]
    evaluation = lvis.LVISEval(expected, lvis.LVISResults(expected, theirs, max_dets=300), iou_type)
    evaluation.run()
    metrics = federated_ap(coco, results, iou_type)
    assert 10 < metrics["AP"] < 70
    for name, value in metrics.items():
        assert value == pytest.approx(100 * evaluation.get_results()[name], abs=1e-9), name
