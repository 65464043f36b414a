"""Data sets: official names, and your own."""

import os

from .ade20k import register_all_ade20k
from .coco_panoptic import load_coco_panoptic, register_all_coco_panoptic
from .coco_stuff import register_all_coco_stuff_10k
from .custom import register_custom_datasets
from .lvis import read_lvis_by_itself
from .mapillary_vistas import register_all_mapillary_vistas

__all__ = [
    "load_coco_panoptic",
    "read_lvis_by_itself",
    "register_all_ade20k",
    "register_all_coco_panoptic",
    "register_all_coco_stuff_10k",
    "register_all_mapillary_vistas",
    "register_custom_datasets",
]

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco_panoptic(_root)
register_all_coco_stuff_10k(_root)
register_all_ade20k(_root)
register_all_mapillary_vistas(_root)
read_lvis_by_itself()
