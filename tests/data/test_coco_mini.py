"""Real photographs with COCO's own annotations, through every mapper."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from pycocotools.coco import COCO

from mask2former.data import DATASET_MAPPERS, build_dataset_mapper, largest_instance_count, register_custom_datasets


@pytest.fixture
def coco_mini(shared_dir: Path) -> Path:
    return shared_dir / "data" / "coco_mini"


@pytest.fixture
def registered(cfg: CfgNode, coco_mini: Path, data_root: Path) -> CfgNode:
    annotations = coco_mini / "annotations"
    cfg.DATASETS.CUSTOM = CfgNode(
        {
            "mini_panoptic": {
                "FORMAT": "coco_panoptic",
                "IMAGES": str(coco_mini / "val2017"),
                "ANNOTATIONS": str(annotations / "panoptic_val2017.json"),
                "SEGMENTS": str(annotations / "panoptic_val2017"),
            },
            "mini_instance": {
                "FORMAT": "coco_instance",
                "IMAGES": str(coco_mini / "val2017"),
                "ANNOTATIONS": str(annotations / "instances_val2017.json"),
            },
        }
    )
    register_custom_datasets(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    cfg.INPUT.IMAGE_SIZE = 128
    return cfg


def test_official_metadata() -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert metadata.stuff_classes == [category["name"] for category in COCO_CATEGORIES]
    assert metadata.thing_classes == metadata.stuff_classes[:80]
    assert metadata.stuff_colors == [category["color"] for category in COCO_CATEGORIES]
    ids = [category["id"] for category in COCO_CATEGORIES]
    assert metadata.stuff_dataset_id_to_contiguous_id == {number: i for i, number in enumerate(ids)}
    assert metadata.thing_dataset_id_to_contiguous_id == {number: i for i, number in enumerate(ids[:80])}
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.label_divisor) == ("coco_panoptic_seg", 255, 1000)
    assert metadata.sem_seg_root.endswith("coco/panoptic_semseg_val2017")
    for split in ("train", "val"):
        assert MetadataCatalog.get(f"coco_2017_{split}_panoptic").thing_classes == metadata.thing_classes


def test_classes_are_the_official_ones(registered: CfgNode) -> None:
    official = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    mini = MetadataCatalog.get("mini_panoptic")
    for key in (
        "thing_classes",
        "stuff_classes",
        "thing_dataset_id_to_contiguous_id",
        "stuff_dataset_id_to_contiguous_id",
    ):
        assert getattr(mini, key) == getattr(official, key)
    assert MetadataCatalog.get("mini_instance").thing_classes == official.thing_classes


def test_panoptic_targets(registered: CfgNode, coco_mini: Path) -> None:
    """Against the annotation file and its PNGs, read here in a few lines."""
    content = json.loads((coco_mini / "annotations/panoptic_val2017.json").read_text())
    by_image = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    contiguous = {category["id"]: i for i, category in enumerate(COCO_CATEGORIES)}
    mapper = DATASET_MAPPERS["mask_former_panoptic"](registered, is_train=True, augmentations=[])
    semantic = DATASET_MAPPERS["mask_former_semantic"](registered, is_train=True, augmentations=[])
    dicts = DatasetCatalog.get("mini_panoptic")
    assert len(dicts) == 27
    assert largest_instance_count(dicts) == max(
        sum(not segment["iscrowd"] for segment in annotation["segments_info"]) for annotation in content["annotations"]
    )
    for record in dicts:
        annotation = by_image[record["image_id"]]
        rgb = np.asarray(Image.open(coco_mini / "annotations/panoptic_val2017" / annotation["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        segments = annotation["segments_info"]
        targets = [segment for segment in segments if not segment["iscrowd"]]
        instances = mapper(record)["instances"]
        assert instances.gt_classes.tolist() == [contiguous[segment["category_id"]] for segment in targets]
        np.testing.assert_array_equal(instances.gt_masks, np.stack([ids == segment["id"] for segment in targets]))
        sem_seg = np.full(ids.shape, 255)
        for segment in segments:
            sem_seg[ids == segment["id"]] = contiguous[segment["category_id"]]
        np.testing.assert_array_equal(semantic(record)["sem_seg"], sem_seg)


def test_instance_targets(registered: CfgNode, coco_mini: Path) -> None:
    coco = COCO(str(coco_mini / "annotations/instances_val2017.json"))
    mapper = DATASET_MAPPERS["mask_former_instance"](registered, is_train=True, augmentations=[])
    crowds = 0
    for record in DatasetCatalog.get("mini_instance"):
        annotations = coco.imgToAnns[record["image_id"]]
        example = mapper(record)
        targets = [coco.annToMask(annotation) for annotation in annotations if not annotation["iscrowd"]]
        assert len(example["instances"]) == len(targets)
        for mask, target in zip(example["instances"].gt_masks, targets, strict=True):
            np.testing.assert_array_equal(mask, target.astype(bool))
        ignored = np.zeros((record["height"], record["width"]), dtype=bool)
        for annotation in annotations:
            if annotation["iscrowd"]:
                ignored |= coco.annToMask(annotation).astype(bool)
                crowds += 1
        np.testing.assert_array_equal(example["ignore_mask"], ignored)
    assert crowds > 0


def draw_polygons(polygons: list[list[float]], transforms: T.TransformList) -> np.ndarray:
    moved = [transforms.apply_coords(np.reshape(points, (-1, 2)).astype(float)).ravel().tolist() for points in polygons]
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(moved, 128, 128)))


@pytest.mark.parametrize("name", ["coco_panoptic_lsj", "coco_instance_lsj"])
def test_augmented_examples_are_those_of_detectron2s_transforms(registered: CfgNode, name: str) -> None:
    """Each mask moved by itself."""
    registered.INPUT.DATASET_MAPPER_NAME = name
    mapper = build_dataset_mapper(registered)
    padded = T.FixedSizeCrop((128, 128), seg_pad_value=0)
    augmentations = T.AugmentationList([T.RandomFlip(), T.ResizeScale(0.1, 2.0, 128, 128), padded])
    targets = 0
    for seed, record in enumerate(DatasetCatalog.get("mini_panoptic" if "panoptic" in name else "mini_instance")):
        np.random.seed(seed)
        example = mapper(record)
        np.random.seed(seed)
        inputs = T.AugInput(np.asarray(Image.open(record["file_name"]).convert("RGB")))
        transforms = augmentations(inputs)
        difference = np.abs(example["image"].permute(1, 2, 0).numpy().astype(int) - inputs.image)
        assert difference.max() <= 1
        assert difference.mean() < 0.02  # images of 128 x 128 are shrunk, which PyTorch rounds otherwise
        if "panoptic" in name:
            ids = np.asarray(Image.open(record["pan_seg_file_name"])).astype(int) @ [1, 256, 65536]
            kept = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
            moved = [transforms.apply_segmentation((ids == segment["id"]).astype(np.uint8)) for segment in kept]
        else:
            kept = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
            inside = transforms.apply_segmentation(np.ones((record["height"], record["width"]), dtype=np.uint8))
            moved = [draw_polygons(annotation["segmentation"], transforms) & inside for annotation in kept]
        expected = [mask.astype(bool) for mask in moved if mask.any()]
        np.testing.assert_array_equal(example["instances"].gt_masks, np.reshape(expected, (-1, 128, 128)))
        targets += len(expected)
    assert targets > 50


@pytest.mark.parametrize("name", DATASET_MAPPERS)
def test_every_mapper_reads_everything(registered: CfgNode, name: str) -> None:
    registered.INPUT.DATASET_MAPPER_NAME = name
    registered.INPUT.MIN_SIZE_TRAIN = (128,)
    registered.INPUT.CROP.ENABLED = True
    registered.INPUT.CROP.TYPE, registered.INPUT.CROP.SIZE = "absolute", [128, 128]
    registered.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    registered.INPUT.SIZE_DIVISIBILITY = 128
    registered.INPUT.COLOR_AUG_SSD = True
    mapper = build_dataset_mapper(registered)
    records = DatasetCatalog.get("mini_panoptic")
    if "instance" in name:
        records = records + DatasetCatalog.get("mini_instance")
    targets = 0
    for record in records:
        example = mapper(record)
        assert example["image"].shape == (3, 128, 128)
        assert example["instances"].gt_masks.shape[1:] == example["ignore_mask"].shape == (128, 128)
        assert example["instances"].gt_masks.any(dim=2).any(dim=1).all()
        targets += len(example["instances"])
    assert targets > 3 * 27


def test_derived_instances(registered: CfgNode) -> None:
    """COCO instances derived from the PNGs have their areas and boxes."""
    records = {record["image_id"]: record for record in DatasetCatalog.get("mini_panoptic")}
    content: dict[str, Any] = json.loads(Path(MetadataCatalog.get("mini_panoptic").json_file).read_text())
    things = [segment for record in records.values() for segment in record["segments_info"] if segment["isthing"]]
    assert len(content["annotations"]) == len(things)
    for annotation, segment in zip(content["annotations"], things, strict=True):
        assert annotation["area"] == segment["area"] == mask_util.area(annotation["segmentation"])
        assert annotation["bbox"] == mask_util.toBbox(annotation["segmentation"]).tolist() == segment["bbox"]
        assert annotation["iscrowd"] == segment["iscrowd"]
