"""Inference on images tile by tile, with segments joined across the seams."""

from .inference import TiledInference
from .rendering import instances_of_patches, panoptic_of_patches
from .tiles import default_overlap, plan_tiles

__all__ = ["TiledInference", "default_overlap", "instances_of_patches", "panoptic_of_patches", "plan_tiles"]
