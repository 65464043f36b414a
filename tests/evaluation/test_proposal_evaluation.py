"""Average recall against a loop over thresholds, objects and proposals."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from mask2former.evaluation import ProposalEvaluator


def _square(row: int, column: int, size: int) -> np.ndarray:
    mask = np.zeros((40, 50), np.uint8)
    mask[row : row + size, column : column + size] = 1
    return mask


def _annotate(path: Path, masks: list[np.ndarray], categories: list[int], crowd: list[int]) -> None:
    entries = []
    for index, (mask, category, iscrowd) in enumerate(zip(masks, categories, crowd, strict=True), start=1):
        rle = mask_util.encode(np.asfortranarray(mask))
        entries.append(
            {
                "id": index,
                "image_id": 1,
                "category_id": category,
                "iscrowd": iscrowd,
                "area": int(mask.sum()),
                "bbox": mask_util.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    content = {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": entries,
    }
    path.write_text(json.dumps(content))


WANTED = [_square(0, 0, 10), _square(20, 0, 10), _square(20, 30, 10)]
# IoU 1 with the first, and 80 / 120 with the second.
FOUND = np.stack([_square(0, 0, 10), _square(20, 2, 10)]).astype(bool)


@pytest.fixture
def evaluator(tmp_path: Path) -> ProposalEvaluator:
    """Of one image with two objects of different classes and a crowd."""
    _annotate(tmp_path / "a.json", WANTED, [1, 2, 2], [0, 0, 1])
    MetadataCatalog.get("proposals").json_file = str(tmp_path / "a.json")
    yield ProposalEvaluator("proposals")
    MetadataCatalog.remove("proposals")


def test_recall_ignores_classes_and_crowds(evaluator: ProposalEvaluator) -> None:
    sources = {"both": (FOUND, np.array([0.9, 0.8])), "one": (FOUND[:1], np.array([0.1])), "none": (FOUND[:0], [])}
    evaluator.process([{"image_id": 1}], [{"proposals": sources}])
    expected = {}
    for name, (masks, _) in sources.items():
        recalls = []
        for threshold in np.arange(0.5, 1.0, 0.05):
            best = [max(((m & (w > 0)).sum() / (m | (w > 0)).sum() for m in masks), default=0) for w in WANTED[:2]]
            recalls.append(sum(overlap >= threshold for overlap in best) / 2)
        expected[name] = 100 * np.mean(recalls)

    assert evaluator.evaluate() == {"proposals": pytest.approx(expected)}
    assert 50 < expected["both"] < 100
    assert expected["none"] == 0


def test_only_the_best_hundred_count(evaluator: ProposalEvaluator) -> None:
    masks = np.concatenate([np.repeat(FOUND[1:], 100, axis=0), FOUND[:1]])
    evaluator.process([{"image_id": 1}], [{"proposals": {"all": (masks, np.linspace(1, 0.5, 101))}}])
    alone = {"all": (FOUND[1:], [1.0])}
    expected = ProposalEvaluator("proposals")
    expected.process([{"image_id": 1}], [{"proposals": alone}])

    assert evaluator.evaluate() == expected.evaluate()


def test_only_images_that_were_seen_count(evaluator: ProposalEvaluator, tmp_path: Path) -> None:
    evaluator.process([{"image_id": 1}], [{"proposals": {"both": (FOUND, np.array([0.9, 0.8]))}}])
    alone = evaluator.evaluate()
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"].append({**content["images"][0], "id": 2})
    content["annotations"] += [
        {**annotation, "id": annotation["id"] + 9, "image_id": 2} for annotation in content["annotations"]
    ]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with_another = ProposalEvaluator("proposals")
    with_another.process([{"image_id": 1}], [{"proposals": {"both": (FOUND, np.array([0.9, 0.8]))}}])

    assert with_another.evaluate() == alone


def test_proposals_of_all_processes_count(evaluator: ProposalEvaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process has seen the image, the other none."""
    evaluator.process([{"image_id": 1}], [{"proposals": {"both": (FOUND, np.array([0.9, 0.8]))}}])
    alone = evaluator.evaluate()
    monkeypatch.setattr(comm, "gather", lambda mine: [([], {}), mine])

    assert evaluator.evaluate() == alone


def test_data_set_without_annotations_is_named() -> None:
    with pytest.raises(ValueError, match="'proposals_of_nothing' names no file of COCO annotations"):
        ProposalEvaluator("proposals_of_nothing")
    MetadataCatalog.remove("proposals_of_nothing")
