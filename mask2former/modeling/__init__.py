"""The model. Importing this package registers every component under its official name."""

from .backbone import D2SwinTransformer, TimmBackbone
from .build import TRANSFORMER_DECODER_REGISTRY
from .head import MaskFormerHead
from .mask_former import MaskFormer
from .pixel_decoder import (
    BiFPNPixelDecoder,
    FaPNPixelDecoder,
    FPNPixelDecoder,
    MSDeformAttnPixelDecoder,
    SemanticFPNPixelDecoder,
)
from .transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "BiFPNPixelDecoder",
    "D2SwinTransformer",
    "FPNPixelDecoder",
    "FaPNPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "SemanticFPNPixelDecoder",
    "TimmBackbone",
]
