"""Whatever compares predictions with annotations, the figures are the same."""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.evaluation import COCOEvaluator
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation import InstanceSegEvaluator, PanopticEvaluator, backend, run_lengths
from mask2former.evaluation.average_precision import CocoComparison
from mask2former.evaluation.panoptic_evaluation import count_matches
from mask2former.evaluation.run_lengths import encode_mask

needs_hotcoco = pytest.mark.skipif(not backend.has_hotcoco(), reason="hotcoco is not installed")


def guesses(truth: COCO, seed: int) -> list[dict[str, Any]]:
    """For each annotation some masks that are grown, shrunk or moved, some of them of another class."""
    rng = random.Random(seed)
    results = []
    for annotation in truth.anns.values():
        for _ in range(4):
            kernel = np.ones((rng.choice([1, 3, 7, 15]),) * 2, np.uint8)
            change = rng.choice([cv2.dilate, cv2.erode])
            rle = encode_mask(np.roll(change(truth.annToMask(annotation), kernel), rng.randint(-6, 6), axis=1) > 0)
            guessed = annotation["category_id"] if rng.random() < 0.8 else rng.choice(sorted(truth.cats))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": guessed,
                    "segmentation": rle,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "score": round(rng.random(), 2),  # some are the same
                }
            )
    return results


@pytest.fixture
def mini(shared_dir: Path) -> Path:
    return shared_dir / "data" / "coco_mini" / "annotations"


@needs_hotcoco
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("options", [{}, {"max_detections": (1, 2, 5)}, {"with_classes": False}, {"image_ids": 9}])
def test_ap_on_coco(mini: Path, iou_type: str, options: dict[str, Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(mini / "instances_val2017.json"))
    if "image_ids" in options:
        options = {"image_ids": sorted(truth.imgs)[: options["image_ids"]]}
    results = guesses(truth, seed=0)
    ours, reference = (
        CocoComparison(truth, results, iou_type, backend=name).evaluate(**options) for name in ("hotcoco", "reference")
    )

    assert isinstance(ours, pytest.importorskip("hotcoco").COCOeval)
    assert isinstance(reference, COCOeval)
    for table in ("precision", "recall"):
        assert np.array_equal(ours.eval[table], reference.eval[table])
    np.testing.assert_allclose(ours.stats, reference.stats, rtol=0, atol=1e-12)
    assert 0.1 < reference.stats[0] < 0.9


@needs_hotcoco
def test_pq_on_coco(mini: Path, tmp_path: Path) -> None:
    truth = json.loads((mini / "panoptic_val2017.json").read_text())
    categories = [category["id"] for category in truth["categories"]]
    rng = np.random.default_rng(0)
    predictions = []
    for annotation in truth["annotations"]:
        ids = rgb2id(np.asarray(Image.open(mini / "panoptic_val2017" / annotation["file_name"]).convert("RGB")))
        guessed, segments = np.zeros_like(ids), []
        for number, segment in enumerate(annotation["segments_info"], 1):
            guessed[np.roll(ids == segment["id"], rng.integers(-8, 9, 2), (0, 1))] = number
            category = segment["category_id"] if rng.random() < 0.8 else int(rng.choice(categories))
            segments.append({"id": number, "category_id": category})
        Image.fromarray(id2rgb(guessed)).save(tmp_path / annotation["file_name"])
        kept = [segment for segment in segments if (guessed == segment["id"]).any()]
        predictions.append({k: annotation[k] for k in ("image_id", "file_name")} | {"segments_info": kept})

    some = predictions[3:]  # as one process of several has them
    truth_dir = mini / "panoptic_val2017"
    ours, reference = (
        count_matches(some, tmp_path, truth, truth_dir, backend=name) for name in ("hotcoco", "reference")
    )
    for category in categories:
        assert vars(ours[category]) == vars(reference[category])
    assert sum(reference[category].tp for category in categories) > 100


@needs_hotcoco
def test_evaluators(make_scene, run, tmp_path):
    scene = make_scene(images=12)
    arguments = scene.inputs, scene.outputs
    expected = run(COCOEvaluator(scene.name, output_dir=str(tmp_path / "d2")), *arguments)
    pq = {}
    for name in ("hotcoco", "reference"):
        folder = str(tmp_path / name)
        found = run(InstanceSegEvaluator(scene.name, output_dir=folder, backend=name), *arguments)
        assert {task: pytest.approx(metrics, nan_ok=True) for task, metrics in found.items()} == expected
        pq[name] = run(PanopticEvaluator(scene.name, folder, name), *arguments)["panoptic_seg"]
    assert pq["hotcoco"] == pytest.approx(pq["reference"], abs=1e-9)
    assert expected["segm"]["AP"] > 10
    assert pq["reference"]["PQ"] > 10


@needs_hotcoco
@pytest.mark.parametrize(("image_id", "class_id"), [(2**64, 11), (1, -11)])
def test_ids_that_hotcoco_does_not_take(make_scene, run, tmp_path, image_id, class_id):
    figures = []
    for name, image, category in (("plain", 1, 11), ("strange", image_id, class_id)):
        things = {category: 0, 12: 1}
        scene = make_scene(
            name,
            thing_dataset_id_to_contiguous_id=things,
            stuff_dataset_id_to_contiguous_id={**things, 13: 2, 14: 3},
        )
        for file in scene.folder.glob("*.json"):
            text = file.read_text().replace('"id": 1, "file_name"', f'"id": {image}, "file_name"')
            text = text.replace('"image_id": 1,', f'"image_id": {image},').replace('"id": 11,', f'"id": {category},')
            file.write_text(text.replace('"category_id": 11', f'"category_id": {category}'))
        scene.inputs[0]["image_id"] = image
        for evaluator in (InstanceSegEvaluator, PanopticEvaluator):
            found = run(evaluator(name, output_dir=str(tmp_path)), scene.inputs, scene.outputs)
            figures.append(found.get("segm", found.get("panoptic_seg")))
    assert figures[2:] == [pytest.approx(expected, abs=1e-9, nan_ok=True) for expected in figures[:2]]


@needs_hotcoco
def test_run_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((37, 53)) < share for share in (0, 0.02, 0.5, 1)]
    masks.append(masks[2][:, ::2])  # not contiguous
    masks += [masks[1].astype(np.float32), masks[2].astype(np.int64)]  # as the official release's functions give them
    ours = [encode_mask(mask) for mask in masks]
    monkeypatch.setattr(run_lengths, "has_hotcoco", lambda: False)
    assert ours == [encode_mask(mask) for mask in masks]
    assert all(np.array_equal(mask_util.decode(rle), mask) for rle, mask in zip(ours, masks, strict=True))


@pytest.mark.parametrize("evaluator", [InstanceSegEvaluator, PanopticEvaluator])
def test_evaluators_complain_before_the_model_runs(make_scene, evaluator, tmp_path):
    with pytest.raises(ValueError, match="EVALUATION_BACKEND is 'fast'"):
        evaluator(make_scene(images=1).name, output_dir=str(tmp_path), backend="fast")


def test_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_hotcoco", lambda: True)
    assert backend.use_hotcoco("auto", [0, 7])
    assert not backend.use_hotcoco("reference", [0, 7])
    assert not backend.use_hotcoco("auto", [7, "frankfurt_000000"])
    assert not backend.use_hotcoco("auto", [-1])
    assert not backend.use_hotcoco("auto", [2**64])
    with pytest.raises(
        ValueError, match=r"whole numbers from 0 to 2\^64 - 1, but one is 'frankfurt_000000'; use 'auto'"
    ):
        backend.use_hotcoco("hotcoco", [7, "frankfurt_000000"])
    with pytest.raises(ValueError, match="EVALUATION_BACKEND is 'fast', expected one of auto, hotcoco, reference"):
        backend.use_hotcoco("fast", [])

    monkeypatch.setattr(backend, "has_hotcoco", lambda: False)
    assert not backend.use_hotcoco("auto", [0, 7])
    with pytest.raises(ImportError, match=r"not installed; pip install 'mask2former\[eval\]'"):
        backend.use_hotcoco("hotcoco", [0, 7])
