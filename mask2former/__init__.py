"""Mask2Former: universal image segmentation as a Detectron2 extension."""

from . import _detectron2  # noqa: F401, I001  before everything that imports Detectron2
from .config import add_maskformer2_config

__version__ = "0.1.0"

__all__ = ["add_maskformer2_config"]
