"""Transformer decoders: queries to class logits and mask logits (Section 3.2)."""

from .layers import CrossAttentionLayer, MaskedAttentionLayer
from .mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder
from .mask_pooling import MaskPoolingLayer
from .maskformer_transformer_decoder import StandardTransformerDecoder
from .smca import SMCALayer

__all__ = [
    "CrossAttentionLayer",
    "MaskPoolingLayer",
    "MaskedAttentionLayer",
    "MultiScaleMaskedTransformerDecoder",
    "SMCALayer",
    "StandardTransformerDecoder",
]
