"""Data sets: official names, and your own."""

import os

from .coco_panoptic import load_coco_panoptic, register_all_coco_panoptic
from .custom import register_custom_datasets

__all__ = ["load_coco_panoptic", "register_all_coco_panoptic", "register_custom_datasets"]

register_all_coco_panoptic(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
