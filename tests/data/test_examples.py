"""The examples for own data, and the YAML that datasets/README.md shows: all of them train on such folders."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former import add_maskformer2_config
from mask2former.data import build_dataset_mapper, check_config_against_data, register_custom_datasets
from tests.brick_data import FORMATS, make_pictures, write_data

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "datasets" / "README.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", README.read_text(), flags=re.DOTALL)
EXAMPLES = sorted(
    path.name for path in (REPOSITORY / "configs/examples").glob("own_*.yaml") if path.name != "own_data.yaml"
)


@pytest.fixture
def folders(
    data_root: Path, write: Any, id_png_entry: CfgNode, coco_instance_entry: CfgNode, coco_panoptic_entry: CfgNode
) -> None:
    """The trees that the README draws."""
    own, coco, panoptic = (data_root / name for name in ("own", "coco", "pan"))
    mine = data_root / "my_data"
    for split in ("train", "val"):
        shutil.copytree(own, mine / split)
        shutil.copytree(own, data_root / "cells" / split)
        shutil.copytree(own, data_root / "land" / split)
        for file in (coco / "images").iterdir():
            shutil.copy(file, mine / split)
        (mine / "annotations").mkdir(exist_ok=True)
        shutil.copy(coco / "instances.json", mine / "annotations" / f"{split}.json")
        shutil.copy(panoptic / "panoptic.json", mine / "annotations" / f"panoptic_{split}.json")
        shutil.copytree(panoptic / "segments", mine / f"panoptic_{split}")
        _more_formats(data_root, split)
    (data_root / "land/names.txt").write_text("road\ncar\nperson\n")


def _more_formats(root: Path, split: str) -> None:
    pictures = make_pictures(2)
    write_data(root / "street" / split, "color_png", pictures)
    shutil.copy(root / "street" / split / "colors.csv", root / "street/colors.txt")
    write_data(root / "written" / split, "yolo_seg", pictures)
    for part in ("images", "labels"):
        shutil.copytree(root / "written" / split / part, root / "yolo" / part / split)
    write_data(root / "labelled" / split, "labelme", pictures)
    shutil.copytree(root / "labelled" / split / "images", root / "labelme" / split)
    for file in (root / "labelled" / split / "labelme").iterdir():
        (root / "labelme" / split / file.name).write_text(file.read_text().replace("../images/", ""))


def check(config_file: Path) -> None:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(config_file), allow_unsafe=False)
    register_custom_datasets(cfg)
    assert cfg.MODEL.MASK_FORMER.IGNORE_VOID
    mapper = build_dataset_mapper(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        dicts = DatasetCatalog.get(name)
        check_config_against_data(cfg, dicts, MetadataCatalog.get(name))
        example = mapper(dicts[0])
        assert example["image"].shape == (3, 640, 640)
        assert np.isin(example["instances"].gt_classes, range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)).all()


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    check(REPOSITORY / "configs/examples" / name)


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_readme(block: int, tmp_path: Path) -> None:
    configs = tmp_path / "configs"  # where the README's _BASE_ starts
    configs.mkdir()
    for part in ("examples", "common"):
        (configs / part).symlink_to(REPOSITORY / "configs" / part)
    (configs / "mine.yaml").write_text(BLOCKS[block])
    check(configs / "mine.yaml")


def test_every_form_is_shown() -> None:
    for form in FORMATS:
        assert any(f"FORMAT: {form}" in block for block in BLOCKS)
    assert len(EXAMPLES) == 3
    assert len(BLOCKS) == 7
