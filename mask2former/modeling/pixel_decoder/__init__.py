"""Pixel decoders: backbone features to a per-pixel embedding and a feature pyramid (Section 3.1)."""

from .maskformer_pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from .msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["BasePixelDecoder", "MSDeformAttnPixelDecoder", "TransformerEncoderPixelDecoder"]
