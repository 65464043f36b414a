"""ADE20K under its official names: 150 classes for all three tasks, and the 847 of the full data set."""

from pathlib import Path

from detectron2.data import MetadataCatalog

from .categories import panoptic_metadata, thing_metadata
from .official import register_instances, register_panoptic, register_sem_seg
from .tables import read_categories, read_table

__all__ = ["register_all_ade20k"]

_FOLDERS = {"train": "training", "val": "validation"}


def register_all_ade20k(root: str | Path) -> None:
    """Register ``ade20k_{panoptic,instance,full_sem_seg}_{train,val}`` below ``root``.

    Detectron2 itself registers ``ade20k_sem_seg_{train,val}``, without colours, which are added.
    """
    for split, folder in _FOLDERS.items():
        _register_150(split, Path(root, "ADEChallengeData2016"), folder)
        _register_full(split, Path(root, "ADE20K_2021_17_01"), folder)


def _register_150(split: str, root: Path, folder: str) -> None:
    images = root / "images" / folder
    metadata = panoptic_metadata(read_categories("ade20k"), things_first=False)
    MetadataCatalog.get(f"ade20k_sem_seg_{split}").set(stuff_colors=metadata["stuff_colors"])
    register_panoptic(
        f"ade20k_panoptic_{split}",
        {
            "image_root": images,
            "panoptic_root": root / f"ade20k_panoptic_{split}",
            "panoptic_json": root / f"ade20k_panoptic_{split}.json",
            "sem_seg_root": root / "annotations_detectron2" / folder,
            "json_file": root / f"ade20k_instance_{split}.json",
        },
        "Run `python datasets/prepare_ade20k_pan_seg.py` (and prepare_ade20k_sem_seg.py and prepare_ade20k_ins_seg.py "
        "for the evaluation of mIoU and AP).",
        {**metadata, "evaluator_type": "ade20k_panoptic_seg", "ignore_label": 255},
    )
    # The names of these classes are not the panoptic ones, and there are no official colours.
    classes = thing_metadata(read_categories("ade20k_instance"))
    del classes["thing_colors"]
    register_instances(
        f"ade20k_instance_{split}",
        images,
        root / f"ade20k_instance_{split}.json",
        "Run `python datasets/prepare_ade20k_ins_seg.py`.",
        classes,
    )


def _register_full(split: str, root: Path, folder: str) -> None:
    register_sem_seg(
        f"ade20k_full_sem_seg_{split}",
        root / "images_detectron2" / folder,
        root / "annotations_detectron2" / folder,
        "Run `python datasets/prepare_ade20k_full_sem_seg.py`.",
        # 16 bits: more than 255 classes.
        {"stuff_classes": [entry["name"] for entry in read_table("ade20k_full")], "ignore_label": 65535},
        suffix="tif",
    )
