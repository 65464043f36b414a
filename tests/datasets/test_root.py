"""Where the official data sets are looked for."""

import importlib
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import mask2former.data.datasets

OURS = ("ade20k_panoptic", "ade20k_instance", "ade20k_full", "mapillary_vistas")


def test_environment(catalogs, tmp_path, monkeypatch):
    catalogs(tmp_path)  # undoes what follows when the test ends
    for name in list(DatasetCatalog):
        if name.startswith(OURS) or name.endswith(("stuff_10k_sem_seg", "with_sem_seg")):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/elsewhere")
    importlib.reload(mask2former.data.datasets)
    for name, folder in (
        ("ade20k_panoptic_val", "ADEChallengeData2016/images/validation"),
        ("ade20k_instance_train", "ADEChallengeData2016/images/training"),
        ("ade20k_full_sem_seg_val", "ADE20K_2021_17_01/images_detectron2/validation"),
        ("coco_2017_test_stuff_10k_sem_seg", "coco/coco_stuff_10k/images_detectron2/test"),
        ("coco_2017_val_panoptic_with_sem_seg", "coco/val2017"),
        ("mapillary_vistas_v2_panoptic_val", "mapillary_vistas/validation/images"),
    ):
        assert MetadataCatalog.get(name).image_root == str(Path("~/elsewhere").expanduser() / folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ade20k_panoptic_val",
            r"ade20k_panoptic_val.json, .*: not found. Run .python datasets/prepare_ade20k_pan_seg.py",
        ),
        ("ade20k_instance_val", r"ade20k_instance_val.json: not found. Run .python datasets/prepare_ade20k_ins_seg.py"),
        (
            "ade20k_full_sem_seg_val",
            r"annotations_detectron2/validation: not found. Run .*prepare_ade20k_full_sem_seg.py",
        ),
        ("coco_2017_test_stuff_10k_sem_seg", r"annotations_detectron2/test: not found. Run .*coco_stuff_10k_v1.0"),
        (
            "mapillary_vistas_v2_panoptic_val",
            r"panoptic_2020.json, .*: not found. They are part of Mapillary Vistas v2.0",
        ),
        ("lvis_v1_val", r"lvis_v1_val.json, .*: not found. Download LVIS' annotations and COCO's images"),
    ],
)
def test_missing_data_is_an_error_that_tells_what_makes_it(name, message, tmp_path, catalogs):
    catalogs(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get(name)
