"""Pixel decoders: backbone features to a per-pixel embedding and a feature pyramid (Section 3.1)."""

from .bifpn import BiFPNPixelDecoder
from .fapn import FaPNPixelDecoder
from .fpn import FPNPixelDecoder
from .maskformer_pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from .msdeformattn import MSDeformAttnPixelDecoder
from .semantic_fpn import SemanticFPNPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "BiFPNPixelDecoder",
    "FPNPixelDecoder",
    "FaPNPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "SemanticFPNPixelDecoder",
    "TransformerEncoderPixelDecoder",
]
