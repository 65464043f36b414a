"""Numbers of classes and queries against the data."""

import logging

import pytest
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from mask2former.data import check_config_against_data, largest_instance_count, warn_of_other_classes


@pytest.fixture
def metadata() -> Metadata:
    return Metadata(name="streets", thing_classes=["car", "person"], stuff_classes=["car", "person", "road"])


def image(things: int, stuff: int = 0, crowds: int = 0) -> dict[str, list[dict[str, object]]]:
    kinds = [(True, 0)] * things + [(False, 0)] * stuff + [(True, 1)] * crowds
    return {"segments_info": [{"isthing": isthing, "iscrowd": iscrowd} for isthing, iscrowd in kinds]}


def test_largest_instance_count() -> None:
    dicts = [image(3, 2, 9), image(4), {"annotations": [{}] * 4 + [{"iscrowd": 1}]}, {"sem_seg_file_name": "a.png"}]
    assert largest_instance_count(dicts) == 5
    assert largest_instance_count(dicts, things_only=True) == 4
    assert largest_instance_count([]) == 0


@pytest.mark.parametrize(
    ("mapper", "right"), [("coco_panoptic_lsj", 3), ("mask_former_semantic", 3), ("coco_instance_lsj", 2)]
)
def test_number_of_classes(cfg: CfgNode, metadata: Metadata, mapper: str, right: int) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = right
    check_config_against_data(cfg, [image(1)], metadata)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    with pytest.raises(ValueError, match=f"NUM_CLASSES is 54, but streets has {right} classes .*NUM_CLASSES {right}"):
        check_config_against_data(cfg, [image(1)], metadata)


def test_number_of_queries(cfg: CfgNode, metadata: Metadata, caplog: pytest.LogCaptureFixture) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    with caplog.at_level(logging.WARNING):
        check_config_against_data(cfg, [image(99, 1)], metadata)
        cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE = 512  # each tile has all the queries
        check_config_against_data(cfg, [image(99, 2)], metadata)
        assert not caplog.records
        cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE = 0
        check_config_against_data(cfg, [image(99, 2)], metadata)
    assert "NUM_OBJECT_QUERIES is 100, but one image of streets has 101 segments" in caplog.text
    assert "Set it to 101 or more" in caplog.text


def test_different_classes_in_one_training(cfg: CfgNode, metadata: Metadata) -> None:
    MetadataCatalog.get("checks_other").set(stuff_classes=["road", "car", "person"])
    cfg.DATASETS.TRAIN = ("checks_other",)
    with pytest.raises(ValueError, match="streets and checks_other are trained on together, but their classes differ"):
        check_config_against_data(cfg, [image(1)], metadata)


def test_other_classes_in_an_evaluation(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    for name, classes in (("checks_a", ["road", "car"]), ("checks_b", ["car", "road"])):
        MetadataCatalog.get(name).set(stuff_classes=classes)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    known, unknown = ("checks_a",), ("checks_unknown",)
    for train, test in ((known, known + unknown), (unknown, known), ((), known)):
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
        warn_of_other_classes(cfg)
    assert caplog.text == ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("checks_a",), ("checks_a", "checks_b")
    warn_of_other_classes(cfg)
    assert "checks_b has other classes (car, road) than checks_a (road, car)" in caplog.text
    assert len(caplog.records) == 1
