"""COCO-Stuff 10k under its official names."""

from pathlib import Path

from .official import register_sem_seg
from .tables import read_table

__all__ = ["register_all_coco_stuff_10k"]


def register_all_coco_stuff_10k(root: str | Path) -> None:
    """Register ``coco_2017_{train,test}_stuff_10k_sem_seg`` below ``root``: 80 things and 91 kinds of stuff."""
    root = Path(root, "coco", "coco_stuff_10k")
    table = read_table("coco_stuff")
    for split in ("train", "test"):
        register_sem_seg(
            f"coco_2017_{split}_stuff_10k_sem_seg",
            root / "images_detectron2" / split,
            root / "annotations_detectron2" / split,
            "Run `python datasets/prepare_coco_stuff_10k_v1.0_sem_seg.py`.",
            {
                "stuff_classes": [entry["name"] for entry in table],
                "stuff_dataset_id_to_contiguous_id": {entry["id"]: i for i, entry in enumerate(table)},
                "ignore_label": 255,
            },
        )
