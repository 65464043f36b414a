"""Parts of the Swin Transformer (Liu et al., ICCV 2021): windowed attention, its block, patch embedding and merging.

Images of tokens are (N, H, W, C) throughout; L is the number of tokens in a window, W^2 for windows of W x W.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.recording import is_recording
from ..row_chunks import in_row_chunks

__all__ = ["PatchEmbed", "PatchMerging", "SwinBlock"]


class PatchEmbed(nn.Module):
    """Image to tokens, one for each patch; a partial patch at the right or bottom is filled with zeros."""

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))  # (N, H / patch, W / patch, C)


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels: (N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Column by column: the order that the published weights were trained with.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias for each relative position."""

    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale  # None is scaled_dot_product_attention's own, 1 / sqrt(channels of a head)
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size))  # (L, L)
        self.register_load_state_dict_pre_hook(_fill_in_relative_position_index)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            x: (N, windows, L, C).
            shift_mask: (windows, L, L), added to the attention logits.

        Returns:
            (N, windows, L, C).
        """
        n, windows, length, dim = x.shape
        qkv = self.qkv(x).view(n, windows, length, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # (1, M, L, L)
        if shift_mask is not None:
            bias = bias.contiguous() + shift_mask.to(bias.dtype)[:, None]  # (windows, M, L, L)
        # Fused attention wants four dimensions: views where possible, and a mask that is not repeated for each image. A
        # graph that is recorded serves any number of images.
        if shift_mask is None or (not is_recording() and n == 1):
            query, key, value = qkv.flatten(1, 2)  # each (N * windows, M, L, D)
        else:
            query, key, value = qkv.flatten(2, 3)  # each (N, windows * M, L, D)
            bias = bias.flatten(0, 1)[None]
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout, scale=self.scale)
        x = x.view(n, windows, self.num_heads, length, -1).transpose(2, 3).reshape(n, windows, length, dim)
        return self.proj_drop(self.proj(x))


class SwinBlock(nn.Module):
    """Windowed attention and a two-layer perceptron, each with its norm before and a residual around it."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        *,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        **attention: Any,
    ) -> None:
        """
        Args:
            dim: channels.
            num_heads: of attention.
            window_size: in tokens.
            shift_size: how far the windows are moved, in tokens; 0 in every other block.
            mlp_ratio: hidden channels of the perceptron, relative to ``dim``.
            drop: dropout after each linear layer.
            drop_path: probability of skipping a residual branch, drawn for each image.
            attention: other arguments of :class:`WindowAttention`.
        """
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, proj_drop=drop, **attention)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        n, height, width, dim = x.shape
        size, shift = self.window_size, self.shift_size
        # Rounded up first: for the symbols of a recorded graph, a padded side is then plainly a multiple of the window.
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
        mask = None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            # In a graph that is being recorded, sizes are symbols: it must compute the mask anew from each. And what
            # is computed of tensors without values must not be kept for those with.
            is_kept = not is_recording() and type(x) is Tensor
            make_mask = shifted_window_mask if is_kept else shifted_window_mask.__wrapped__
            mask = make_mask(rows, columns, size, shift, x.device, x.dtype)
        x = x.view(n, rows, size, columns, size, dim).transpose(2, 3).reshape(n, rows * columns, size**2, dim)
        x = self.attn(x, mask)  # (N, windows, L, C)
        x = x.view(n, rows, columns, size, size, dim).transpose(2, 3).reshape(n, rows * size, columns * size, dim)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return in_row_chunks(self._run, x)

    def _run(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: zero a residual branch for whole images, and scale up what is kept."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if self.probability == 0.0 or not self.training:
            return x
        keep = 1.0 - self.probability
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: (L, L) int64."""
    position = torch.arange(window_size)
    offset = position[:, None] - position + window_size - 1  # (W, W), 0 .. 2 W - 2
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]  # (row, column, row', column')
    return index.reshape(window_size**2, window_size**2)


@lru_cache(maxsize=16)
def shifted_window_mask(
    rows: int, columns: int, window_size: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What keeps tokens apart that only the cyclic shift made neighbours: (rows * columns, L, L), 0 or -100."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training later

        def region(windows: int) -> Tensor:
            # 0, but in the last window 1 for its first part and 2 for the part that comes from the other side.
            position = torch.arange(windows * window_size, device=device)
            return (position >= (windows - 1) * window_size).long() + (position >= windows * window_size - shift).long()

        region_of_token = region(rows)[:, None] * 3 + region(columns)
        region_of_token = region_of_token.view(rows, window_size, columns, window_size).transpose(1, 2).flatten(2)
        region_of_token = region_of_token.flatten(0, 1)  # (windows, L)
        apart = region_of_token[:, :, None] != region_of_token[:, None, :]
        return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, -100.0)


def _fill_in_relative_position_index(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    # A constant, which some checkpoints leave out.
    state_dict.setdefault(prefix + "relative_position_index", module.get_buffer("relative_position_index"))
