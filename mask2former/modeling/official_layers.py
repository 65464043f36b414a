"""Layers as the official release defines them, for decoders that were written with its classes.

Sequences come first, (Q, N, C), and masks say where *not* to look. Parameters have the names of our own layers.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import init_matrices

__all__ = [
    "CrossAttentionLayer",
    "FFNLayer",
    "PositionEmbeddingSine",
    "SelfAttentionLayer",
    "_get_activation_fn",
    "_get_clones",
]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "glu": F.glu}


def _get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[activation]


def _get_clones(module: nn.Module, N: int) -> nn.ModuleList:  # noqa: N803 - the official name
    return nn.ModuleList(copy.deepcopy(module) for _ in range(N))


class _Layer(nn.Module):
    def __init__(self, d_model: int, dropout: float, activation: str, normalize_before: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.activation = _get_activation_fn(activation)
        self.normalize_before = normalize_before

    def _reset_parameters(self) -> None:
        init_matrices(self)

    def with_pos_embed(self, tensor: Tensor, pos: Tensor | None) -> Tensor:
        """``tensor``, with ``pos`` added if there is one."""
        return tensor if pos is None else tensor + pos

    def _before(self, tgt: Tensor) -> Tensor:
        return self.norm(tgt) if self.normalize_before else tgt

    def _after(self, tgt: Tensor, update: Tensor) -> Tensor:
        tgt = tgt + self.dropout(update)
        return tgt if self.normalize_before else self.norm(tgt)


class SelfAttentionLayer(_Layer):
    """Queries attend to one another."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dropout: float = 0.0,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__(d_model, dropout, activation, normalize_before)
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        self._reset_parameters()

    def forward(
        self,
        tgt: Tensor,
        tgt_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Map queries (Q, N, C) to (Q, N, C); masks as in ``nn.MultiheadAttention``."""
        normed = self._before(tgt)
        placed = self.with_pos_embed(normed, query_pos)
        update, _ = self.self_attn(
            placed, placed, normed, attn_mask=tgt_mask, key_padding_mask=tgt_key_padding_mask, need_weights=False
        )
        return self._after(tgt, update)


class CrossAttentionLayer(_Layer):
    """Queries attend to pixels."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dropout: float = 0.0,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__(d_model, dropout, activation, normalize_before)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        self._reset_parameters()

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Map queries (Q, N, C) to (Q, N, C), reading pixels (S, N, C); masks as in ``nn.MultiheadAttention``."""
        update, _ = self.multihead_attn(
            self.with_pos_embed(self._before(tgt), query_pos),
            self.with_pos_embed(memory, pos),
            memory,
            attn_mask=memory_mask,
            key_padding_mask=memory_key_padding_mask,
            need_weights=False,
        )
        return self._after(tgt, update)


class FFNLayer(_Layer):
    """The feed-forward network."""

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__(d_model, dropout, activation, normalize_before)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self._reset_parameters()

    def forward(self, tgt: Tensor) -> Tensor:
        """Map queries (Q, N, C) to (Q, N, C)."""
        return self._after(tgt, self.linear2(self.dropout(self.activation(self.linear1(self._before(tgt))))))


class PositionEmbeddingSine(nn.Module):
    """Sine position encoding of maps, which may have padding.

    Args:
        num_pos_feats: channels for each of the two coordinates; even.
        temperature: as in :class:`~mask2former.modeling.position_encoding.PositionEmbeddingSine`.
        normalize: count rows and columns from 0 to ``scale``, not in pixels.
        scale: None is 2 pi.

    Raises:
        ValueError: if there is a scale, but nothing is normalised.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if scale is not None and not normalize:
            raise ValueError(f"scale is {scale}, which counts only with normalize=True.")
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return encodings (N, 2 * num_pos_feats, H, W) of maps (N, C, H, W); ``mask`` (N, H, W) is True in padding."""
        seen = torch.ones_like(x[:, 0], dtype=torch.bool) if mask is None else ~mask
        return torch.cat([self._encode(seen, axis) for axis in (1, 2)], dim=3).permute(0, 3, 1, 2)

    def _encode(self, seen: Tensor, axis: int) -> Tensor:
        """Sines and cosines, interleaved, along an axis of pixels (N, H, W): (N, H, W, num_pos_feats)."""
        position = seen.cumsum(axis, dtype=torch.float32)
        if self.normalize:
            position = position / (position.narrow(axis, seen.shape[axis] - 1, 1) + 1e-6) * self.scale
        channel = torch.arange(0, self.num_pos_feats, 2, dtype=torch.float32, device=seen.device)
        angles = position[..., None] / self.temperature ** (channel / self.num_pos_feats)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(3)
