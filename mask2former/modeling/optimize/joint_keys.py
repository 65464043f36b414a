"""Keys and values of all layers that read a scale in one product each: GPUs want few and large ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.linear import linear
from ..attention import MultiheadAttention
from ..transformer_decoder.layers import CrossAttentionLayer, MaskedAttentionLayer
from ..transformer_decoder.mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder
from ..transformer_decoder.scales import Scale, one_after_another

__all__ = ["join_keys"]


def join_keys(head: nn.Module) -> bool:
    """Let the Transformer decoder compute the keys and values of all its layers before the first; in place.

    Args:
        head: with a Transformer decoder.

    Returns:
        Whether it was done. It is not where layers do not read one scale each, or attend in a way of their own.
    """
    decoder: Any = getattr(head, "predictor", None)
    if type(decoder) is not MultiScaleMaskedTransformerDecoder or decoder.arrange_scales is not one_after_another:
        return False
    layers = decoder.transformer_cross_attention_layers
    if any(type(layer) not in (CrossAttentionLayer, MaskedAttentionLayer) for layer in layers):
        return False
    attentions = [layer.multihead_attn for layer in layers]
    decoder.arrange_scales = _JointKeys(attentions, len(decoder.feature_levels))
    for attention in attentions:
        attention.__class__ = _AttentionToKeys
    return True


class _AttentionToKeys(MultiheadAttention):
    """Attention to keys and values that have gone through its projections before."""

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        channels = query.shape[-1]
        return linear(query, self.in_proj_weight[:channels], self.in_proj_bias[:channels]), key, value


class _JointKeys(nn.Module):
    """From the scales to what each layer reads: the layer's keys and values.

    Args:
        layers: the attention of each; they read the scales in turn.
        num_scales: of the pyramid.
    """

    def __init__(self, layers: Sequence[MultiheadAttention], num_scales: int) -> None:
        super().__init__()
        self.num_layers = len(layers)
        readers = [layers[place::num_scales] for place in range(num_scales)]
        self.keys = nn.ModuleList(_joint_projection(attentions, 1) for attentions in readers)
        self.values = nn.ModuleList(_joint_projection(attentions, 2) for attentions in readers)

    def forward(self, scales: Sequence[Scale]) -> list[Scale]:
        """For each layer the scale that it reads."""
        channels = scales[0].memory.shape[-1]
        keys = [project(scale.keys).split(channels, dim=-1) for project, scale in zip(self.keys, scales, strict=True)]
        values = [
            project(scale.memory).split(channels, dim=-1) for project, scale in zip(self.values, scales, strict=True)
        ]
        places = [divmod(index, len(scales)) for index in range(self.num_layers)]
        return [scales[place]._replace(keys=keys[place][turn], memory=values[place][turn]) for turn, place in places]


@torch.no_grad()
def _joint_projection(layers: Sequence[MultiheadAttention], part: int) -> nn.Module:
    """The keys' (part 1) or values' (2) projections of attentions as one; that of none gives nothing to split."""
    weights = [layer.in_proj_weight.chunk(3)[part] for layer in layers]
    biases = [layer.in_proj_bias.chunk(3)[part] for layer in layers]
    if not layers:
        return nn.Identity()
    joint = nn.Linear(weights[0].shape[1], sum(map(len, weights)), device=weights[0].device, dtype=weights[0].dtype)
    joint.weight.copy_(torch.cat(weights))
    joint.bias.copy_(torch.cat(biases))
    return joint.requires_grad_(False)
