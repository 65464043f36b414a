"""The truth of every data set, given as the model's output, is perfect to its evaluators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from mask2former import add_maskformer2_config
from mask2former.data.annotation_masks import draw_annotation
from mask2former.data.panoptic_png import read_panoptic_png
from mask2former.evaluation import build_evaluator
from mask2former.image_io import read_label_image
from tests.datasets import trees


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    for switch in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"):
        cfg.MODEL.MASK_FORMER.TEST[switch] = True
    return cfg


def truth_as_output(record: dict[str, Any], metadata: Any) -> dict[str, Any]:
    """What a perfect model would say about an image."""
    size = trees.HEIGHT, trees.WIDTH
    output: dict[str, Any] = {}
    masks: list[np.ndarray] = []
    categories: list[int] = []
    if "pan_seg_file_name" in record:
        ids = read_panoptic_png(record["pan_seg_file_name"], size)
        things = set(metadata.thing_dataset_id_to_contiguous_id.values())
        kept = [segment for segment in record["segments_info"] if not segment.get("iscrowd")]
        segments = [
            {"id": i, "category_id": segment["category_id"], "isthing": segment["category_id"] in things}
            for i, segment in enumerate(kept, 1)
        ]
        numbers, classes = np.zeros(size, dtype=np.int64), np.full(size, 0)
        for i, segment in enumerate(kept, 1):
            numbers[ids == segment["id"]] = i
        for segment in record["segments_info"]:
            classes[ids == segment["id"]] = segment["category_id"]
        output["panoptic_seg"] = torch.tensor(numbers), segments
        output["sem_seg"] = _one_hot(classes, len(metadata.stuff_classes))
        masks = [numbers == segment["id"] for segment in segments if segment["isthing"]]
        categories = [segment["category_id"] for segment in segments if segment["isthing"]]
    elif "sem_seg_file_name" in record:
        classes = read_label_image(record["sem_seg_file_name"])
        output["sem_seg"] = _one_hot(
            np.where(classes == metadata.ignore_label, 0, classes), len(metadata.stuff_classes)
        )
    for annotation in record.get("annotations", []):
        if not annotation.get("iscrowd"):
            part, place = draw_annotation(annotation["segmentation"], size, T.TransformList([]), size)
            masks.append(np.zeros(size, dtype=bool))
            masks[-1][place] = part
            categories.append(annotation["category_id"])
    instances = Instances(size)
    instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, *size))
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.scores = torch.ones(len(masks))
    instances.pred_classes = torch.tensor(categories, dtype=torch.int64)
    return {**output, "instances": instances}


def _one_hot(classes: np.ndarray, num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), num_classes).permute(2, 0, 1)


@pytest.fixture
def evaluate(cfg: CfgNode) -> Callable[[str], dict[str, Any]]:
    def _evaluate(name: str) -> dict[str, Any]:
        evaluator = build_evaluator(cfg, name)
        evaluator.reset()
        records = DatasetCatalog.get(name)
        assert len(records) == 2
        for record in records:
            evaluator.process([record], [truth_as_output(record, MetadataCatalog.get(name))])
        return evaluator.evaluate()

    return _evaluate


def test_ade20k(tmp_path, prepare, catalogs, evaluate):
    trees.write_ade20k(tmp_path)
    for script in ("prepare_ade20k_sem_seg", "prepare_ade20k_pan_seg", "prepare_ade20k_ins_seg"):
        prepare(script, tmp_path)
    catalogs(tmp_path)
    assert evaluate("ade20k_sem_seg_val")["sem_seg"]["mIoU"] == 100
    assert evaluate("ade20k_instance_val")["segm"]["AP"] == pytest.approx(100)

    panoptic = evaluate("ade20k_panoptic_val")
    assert list(panoptic) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert panoptic["panoptic_seg"]["RQ"] == panoptic["panoptic_seg"]["PQ_th"] == 100
    # The areas of stuff count what is hidden.
    assert 70 < panoptic["panoptic_seg"]["SQ_st"] < 100
    assert panoptic["segm"]["AP"] == pytest.approx(100)
    assert [name for name in panoptic["segm"] if name.startswith("AP-")][:4] == [
        "AP-bed",
        "AP-window ",
        "AP-cabinet",
        "AP-person",
    ]
    assert panoptic["segm"]["AP-person"] == pytest.approx(100)
    # The semantic maps do not know the bed, and say more than the instances of the table.
    assert 40 < panoptic["sem_seg"]["mIoU"] < 100


def test_ade20k_full(tmp_path, prepare, catalogs, evaluate):
    trees.write_ade20k_full(tmp_path)
    prepare("prepare_ade20k_full_sem_seg", tmp_path)
    catalogs(tmp_path)
    assert evaluate("ade20k_full_sem_seg_val")["sem_seg"]["mIoU"] == 100


def test_coco(tmp_path, prepare, catalogs, evaluate):
    trees.write_coco(tmp_path)
    prepare("prepare_coco_semantic_annos_from_panoptic_annos", tmp_path)
    catalogs(tmp_path)
    results = evaluate("coco_2017_val_panoptic_with_sem_seg")
    assert [results["panoptic_seg"]["PQ"], results["sem_seg"]["mIoU"]] == [100, 100]
    assert results["segm"]["AP"] == pytest.approx(100)
    assert evaluate("coco_2017_val")["segm"]["AP"] == pytest.approx(100)


def test_lvis(tmp_path, catalogs, evaluate):
    trees.write_coco(tmp_path)
    trees.write_lvis(tmp_path)
    catalogs(tmp_path)
    assert evaluate("lvis_v1_val")["segm"]["AP"] == pytest.approx(100)


def test_coco_stuff(tmp_path, prepare, catalogs, evaluate):
    trees.write_coco_stuff(tmp_path)
    prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)
    catalogs(tmp_path)
    assert evaluate("coco_2017_test_stuff_10k_sem_seg")["sem_seg"]["mIoU"] == 100


def test_cityscapes(tmp_path, prepare, catalogs, evaluate):
    trees.write_cityscapes(tmp_path)
    prepare("prepare_cityscapes", tmp_path)
    catalogs(tmp_path)
    assert evaluate("cityscapes_fine_sem_seg_val")["sem_seg"]["IoU"] == pytest.approx(100)
    results = evaluate("cityscapes_fine_panoptic_val")
    assert list(results) == ["panoptic_seg", "segm", "sem_seg"]
    assert [results["panoptic_seg"]["PQ"], results["sem_seg"]["IoU"]] == [100, pytest.approx(100)]
    assert results["segm"]["AP"] == pytest.approx(100)


def test_cityscapes_instances(tmp_path, catalogs, evaluate):
    pytest.importorskip("shapely")
    trees.write_cityscapes(tmp_path)
    catalogs(tmp_path)
    assert evaluate("cityscapes_fine_instance_seg_val")["segm"]["AP50"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("version", "nested", "prefix"),
    [("v1.2", False, "mapillary_vistas"), ("v1.2", True, "mapillary_vistas"), ("v2.0", False, "mapillary_vistas_v2")],
)
def test_mapillary_vistas(version, nested, prefix, tmp_path, prepare, catalogs, evaluate, cfg):
    trees.write_mapillary_vistas(tmp_path, version, nested)
    catalogs(tmp_path)
    assert evaluate(f"{prefix}_sem_seg_val")["sem_seg"]["mIoU"] == 100
    with pytest.raises(FileNotFoundError, match=f"{prefix}_instance_val.json: not found, but the AP of .{prefix}_pan"):
        evaluate(f"{prefix}_panoptic_val")
    prepare("prepare_mapillary_vistas_ins_seg", tmp_path)
    results = evaluate(f"{prefix}_panoptic_val")
    assert [results["panoptic_seg"]["PQ"], results["sem_seg"]["mIoU"]] == [100, 100]
    assert results["segm"]["AP"] == pytest.approx(100)
    names = [name for name in results["segm"] if name.startswith("AP-")]
    assert len(names) == {"v1.2": 37, "v2.0": 70}[version]
    assert results["segm"]["AP-Car"] == results["segm"]["AP-Bird"] == pytest.approx(100)
