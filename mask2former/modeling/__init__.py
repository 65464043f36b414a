"""The model. Importing this package registers every component under its official name."""

from . import backbone, pixel_decoder, transformer_decoder
from .head import MaskFormerHead
from .mask_former import MaskFormer

__all__ = ["MaskFormer", "MaskFormerHead", "backbone", "pixel_decoder", "transformer_decoder"]
