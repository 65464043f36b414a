"""The ground truth of every official data set can be drawn, with its official configuration."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mask2former.engine.browse import browse, for_data_sets
from mask2former.engine.setup import load_config
from tests.datasets import trees

SMALL = ["INPUT.IMAGE_SIZE", "64", "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.CROP.SIZE", "(32, 32)"]
SMALL += ["INPUT.SIZE_DIVISIBILITY", "-1"]
ADE20K_SCRIPTS = ("prepare_ade20k_sem_seg", "prepare_ade20k_pan_seg", "prepare_ade20k_ins_seg")
ADE20K_SEMANTIC = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k"


@pytest.mark.parametrize(
    ("write", "scripts", "config", "classes", "name"),
    [
        (trees.write_ade20k, ADE20K_SCRIPTS, ADE20K_SEMANTIC, 150, "ade20k_sem_seg_val"),
        (
            trees.write_ade20k,
            ADE20K_SCRIPTS,
            "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k",
            150,
            "ade20k_panoptic_train",
        ),
        (
            trees.write_ade20k,
            ADE20K_SCRIPTS,
            "ade20k/instance-segmentation/maskformer2_R50_bs16_160k",
            100,
            "ade20k_instance_train",
        ),
        (
            trees.write_ade20k_full,
            ("prepare_ade20k_full_sem_seg",),
            ADE20K_SEMANTIC,
            847,
            "ade20k_full_sem_seg_val",
        ),
        (
            trees.write_coco,
            ("prepare_coco_semantic_annos_from_panoptic_annos",),
            "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep",
            133,
            "coco_2017_val_panoptic_with_sem_seg",
        ),
        (trees.write_coco, (), "coco/instance-segmentation/maskformer2_R50_bs16_50ep", 80, "coco_2017_train"),
        (
            trees.write_coco_stuff,
            ("prepare_coco_stuff_10k_v1.0_sem_seg",),
            ADE20K_SEMANTIC,
            171,
            "coco_2017_test_stuff_10k_sem_seg",
        ),
        (
            trees.write_cityscapes,
            ("prepare_cityscapes",),
            "cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k",
            19,
            "cityscapes_fine_panoptic_train",
        ),
        (
            lambda root: trees.write_mapillary_vistas(root, "v1.2"),
            (),
            "mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k",
            65,
            "mapillary_vistas_panoptic_val",
        ),
        (
            lambda root: trees.write_mapillary_vistas(root, "v2.0"),
            (),
            "mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k",
            123,
            "mapillary_vistas_v2_sem_seg_train",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",  # the data set's name
)
def test_official_data_sets(
    write: Callable[[Path], None],
    scripts: tuple[str, ...],
    config: str,
    classes: int,
    name: str,
    tmp_path: Path,
    prepare: Callable[..., None],
    catalogs: Callable[[Path], None],
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    for script in scripts:
        prepare(script, tmp_path)
    catalogs(tmp_path)
    options = [*SMALL, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes)]
    cfg = for_data_sets(load_config(str(repository / "configs" / f"{config}.yaml"), options), (name,))
    capsys.readouterr()
    assert browse(cfg, tmp_path / "out", number=2, augment=False)
    *lines, _ = capsys.readouterr().out.splitlines()
    assert lines
    assert [line for line in lines if ", no target" in line or "48 x 64" not in line] == []
    pictures = sorted((tmp_path / "out").iterdir())
    assert [Image.open(picture).size for picture in pictures] == [(64, 48)] * 2
    assert browse(cfg, tmp_path / "augmented", number=2)
