"""Inference on images tile by tile, with segments joined across the seams."""

from .inference import TiledInference
from .rendering import instances_of_patches, panoptic_of_patches

__all__ = ["TiledInference", "instances_of_patches", "panoptic_of_patches"]
