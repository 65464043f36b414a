"""Transformer decoders: queries to class logits and mask logits (Section 3.2)."""

from .mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder
from .maskformer_transformer_decoder import StandardTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder", "StandardTransformerDecoder"]
