"""Registries of the two decoders and the functions that build them from a configuration."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.registry import Registry
from torch import nn

__all__ = [
    "CROSS_ATTENTION_REGISTRY",
    "TRANSFORMER_DECODER_REGISTRY",
    "build_cross_attention",
    "build_pixel_decoder",
    "build_transformer_decoder",
    "find_registered",
]

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders by ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``. A decoder is called with the pixel decoder's
features and the per-pixel embedding and returns ``pred_logits`` and ``pred_masks``.
"""

CROSS_ATTENTION_REGISTRY = Registry("CROSS_ATTENTION")
CROSS_ATTENTION_REGISTRY.__doc__ = """
What a layer of the Transformer decoder reads pixels with, by ``MODEL.MASK_FORMER.CROSS_ATTENTION_NAME``.
``__init__`` and ``forward`` take what those of the decoder's ``CrossAttentionLayer`` take; ``reads_masks`` says whether
``forward`` needs the masks that queries predict.
"""


def find_registered(registry: Registry, key: str, name: str) -> Callable[..., Any]:
    """What a registry has under the name that the configuration's ``key`` gives.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in registry:
        known = sorted(registered for registered, _ in registry)
        raise ValueError(f"{key} is {name!r}; registered are {known}.")
    registered: Callable[..., Any] = registry.get(name)
    return registered


def build_cross_attention(
    name: str, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False
) -> nn.Module:
    """Build one layer of the cross-attention that is registered as ``name``.

    Raises:
        ValueError: if there is none of that name.
    """
    attention = find_registered(CROSS_ATTENTION_REGISTRY, "MODEL.MASK_FORMER.CROSS_ATTENTION_NAME", name)
    return attention(embed_dim, num_heads, dropout, pre_norm)


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` for those of a backbone's features that ``IN_FEATURES`` names.

    Pixel decoders live in Detectron2's ``SEM_SEG_HEADS`` registry, as in the official release.

    Raises:
        ValueError: if there is none of that name, or ``IN_FEATURES`` names features that the backbone does not give.
        TypeError: if the registered class has no ``forward_features``.
    """
    in_features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    missing = [name for name in in_features if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the backbone gives {sorted(input_shape)}; set "
            "the backbone's OUT_FEATURES or IN_FEATURES accordingly."
        )
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    pixel_decoder = find_registered(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", name)
    model: nn.Module = pixel_decoder(cfg, {name: input_shape[name] for name in in_features})
    if not callable(getattr(model, "forward_features", None)):
        raise TypeError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, which is not a pixel decoder: it has no method "
            "forward_features(features). Name a pixel decoder such as 'MSDeformAttnPixelDecoder'."
        )
    return model


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` for features of ``in_channels`` channels.

    Raises:
        ValueError: if there is none of that name.
    """
    key, name = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    model: nn.Module = find_registered(TRANSFORMER_DECODER_REGISTRY, key, name)(cfg, in_channels, mask_classification)
    return model
