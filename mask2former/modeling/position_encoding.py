"""Sine position encoding of a feature map (DETR, Carion et al., ECCV 2020, Section A.4)."""

import math

import torch
from torch import Tensor, nn

__all__ = ["PositionEmbeddingSine"]


class PositionEmbeddingSine(nn.Module):
    """Encode each pixel's row in the first half of the channels and its column in the second.

    Args:
        num_pos_feats: channels for each of the two coordinates; even.
        temperature: longest wavelength is ``2 * pi * temperature`` (before normalisation).
        scale: coordinates are normalised to ``(0, scale]``.

    Raises:
        ValueError: if ``num_pos_feats`` is odd.
    """

    def __init__(self, num_pos_feats: int = 128, temperature: float = 10000.0, scale: float = 2 * math.pi) -> None:
        super().__init__()
        if num_pos_feats % 2:
            raise ValueError(
                f"the position encoding has {num_pos_feats} channels a coordinate, which do not go into pairs of sine "
                "and cosine; choose MODEL.MASK_FORMER.HIDDEN_DIM (or MODEL.SEM_SEG_HEAD.CONVS_DIM in a pixel decoder) "
                "as a multiple of 4."
            )
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.scale = scale

    def forward(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Return the encoding (1, 2 * num_pos_feats, height, width), float32; it depends on the size alone."""
        rows = self._encode(height, device)[:, :, None].expand(-1, -1, width)
        columns = self._encode(width, device)[:, None, :].expand(-1, height, -1)
        return torch.cat([rows, columns])[None]  # (1, C, H, W)

    def _encode(self, length: int, device: torch.device | str | None) -> Tensor:
        """Sines and cosines, interleaved, of the pixels 1..length: (num_pos_feats, length)."""
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        position = position / (length + 1e-6) * self.scale
        channel = torch.arange(0, self.num_pos_feats, 2, dtype=torch.float32, device=device)
        angles = position / (self.temperature ** (channel / self.num_pos_feats))[:, None]  # (num_pos_feats / 2, length)
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)
