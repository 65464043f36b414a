"""Backbones: image to ``{"res2": 1/4, "res3": 1/8, "res4": 1/16, "res5": 1/32}``; importing registers them."""

from .swin import D2SwinTransformer
from .timm_backbone import TimmBackbone

__all__ = ["D2SwinTransformer", "TimmBackbone"]
