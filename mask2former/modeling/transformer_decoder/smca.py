"""Spatially modulated co-attention (Gao et al., Fast Convergence of DETR with SMCA, ICCV 2021, Section 3.2)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..build import CROSS_ATTENTION_REGISTRY
from .layers import MLP, CrossAttentionLayer
from .scales import Scale

__all__ = ["SMCALayer"]

# Scales at the start of training, relative to the image: about uniform, so that training begins as plain attention.
INITIAL_SCALE = 1.0
# No Gaussian is narrower than this share of the image, so that the division is safe.
MIN_SCALE = 1e-3


@CROSS_ATTENTION_REGISTRY.register()
class SMCALayer(CrossAttentionLayer):
    """Cross-attention whose logits are raised around a point that each query predicts for each head.

    ``softmax(K Q / sqrt(D) + log G) V`` with the Gaussian ``G = exp(-(x - c_x)^2 / (beta s_x^2) - (y - c_y)^2 /
    (beta s_y^2))``. The centre c is one point a query, plus an offset for each head; the scale s is predicted for each
    head. Centres, offsets and scales are relative to the image's width and height, not in pixels as in the paper,
    whose decoder reads maps of one size; here the layers read maps of several. beta is 1: a factor of the scales.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(embed_dim, num_heads, dropout, pre_norm)
        self.num_heads = num_heads
        self.center = MLP(embed_dim, embed_dim, 2, 2)
        self.offset = nn.Linear(embed_dim, num_heads * 2)
        self.scale = nn.Linear(embed_dim, num_heads * 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.scale.weight)
        nn.init.constant_(self.scale.bias, INITIAL_SCALE)
        # Heads start on a circle around the common centre, else they would all learn the same.
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        with torch.no_grad():
            self.offset.bias.copy_(0.1 * torch.stack([angles.cos(), angles.sin()], dim=-1).flatten())

    def forward(self, x: Tensor, query_pos: Tensor, scale: Scale, attend: Tensor | None = None) -> Tensor:
        """As the base class, for ``attend`` None: the Gaussian takes its place."""
        log_gaussian = self.log_gaussian(self._before(x) + query_pos, scale.shapes)
        return super().forward(x, query_pos, scale, log_gaussian)

    def log_gaussian(self, query: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map queries (N, Q, C) to log G (N, M, Q, S), not above 0, at the pixels of maps of these (height, width)."""
        centers = self.center(query).float().sigmoid()[:, :, None] + self._per_head(self.offset(query))  # (N, Q, M, 2)
        scales = self._per_head(self.scale(query)).abs().clamp(min=MIN_SCALE)
        pixels = [_pixel_coordinates(height, width, query.device) for height, width in shapes]
        x, y = (torch.cat(axis) for axis in zip(*pixels, strict=True))  # (S,) each
        return (
            _exponent(x, centers[..., 0], scales[..., 0]) + _exponent(y, centers[..., 1], scales[..., 1])
        ).transpose(1, 2)

    def _per_head(self, x: Tensor) -> Tensor:
        return x.float().unflatten(-1, (self.num_heads, 2))


def _exponent(position: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    """One coordinate's part of log G: (S,), (N, Q, M), (N, Q, M) to (N, Q, M, S)."""
    return -(((position - center[..., None]) / scale[..., None]) ** 2)


def _pixel_coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of all pixel centres in 0..1, row by row, (height * width,) each."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return x.repeat(height), y.repeat_interleave(width)
