"""The model. Importing this package registers every component under its official name."""

from .backbone import D2SwinTransformer, TimmBackbone
from .build import TRANSFORMER_DECODER_REGISTRY
from .head import MaskFormerHead
from .mask_former import MaskFormer
from .per_pixel_baseline import PerPixelBaselineHead, PerPixelBaselinePlusHead
from .pixel_decoder import (
    BasePixelDecoder,
    BiFPNPixelDecoder,
    FaPNPixelDecoder,
    FPNPixelDecoder,
    MSDeformAttnPixelDecoder,
    SemanticFPNPixelDecoder,
    TransformerEncoderPixelDecoder,
)
from .transformer_decoder import MultiScaleMaskedTransformerDecoder, StandardTransformerDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "BasePixelDecoder",
    "BiFPNPixelDecoder",
    "D2SwinTransformer",
    "FPNPixelDecoder",
    "FaPNPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "SemanticFPNPixelDecoder",
    "StandardTransformerDecoder",
    "TimmBackbone",
    "TransformerEncoderPixelDecoder",
]
