"""Operators. This package knows nothing of the rest of Mask2Former."""

from .ms_deform_attn import MSDeformAttn, fused_ms_deform_attn, ms_deform_attn, ms_deform_attn_reference

__all__ = ["MSDeformAttn", "fused_ms_deform_attn", "ms_deform_attn", "ms_deform_attn_reference"]
