"""Frozen batch norms scale the weights of the convolution before them, which are trained, and not the map between."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

__all__ = ["fold_frozen_batch_norm"]


def fold_frozen_batch_norm(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution and a frozen batch norm after it, in the type that autocast asks for.

    Gradients reach the convolution's own weights and bias. What the norm multiplies by and adds is computed when it
    gets other statistics, which is not seen where these are written through ``.data``.
    """
    dtype = _find_dtype(conv.weight)
    scale, bias = _find_affine(conv, norm, dtype)
    if conv.bias is not None:
        bias = (bias + conv.bias * scale.flatten()).to(dtype)
    weight: Tensor = _Scale.apply(conv.weight, scale, dtype)
    return weight, bias


def _find_dtype(weight: Tensor) -> torch.dtype:
    """The type that a convolution with these weights computes in, which autocast may say."""
    device = weight.device.type
    if (
        weight.dtype == torch.float64  # which autocast leaves alone
        or not torch.amp.is_autocast_available(device)
        or not torch.is_autocast_enabled(device)
    ):
        return weight.dtype
    return torch.get_autocast_dtype(device)


class _Affine(NamedTuple):
    """What a norm multiplies by, (C, 1, 1, 1), and adds, (C,), with what it was computed from."""

    statistics: tuple[Tensor, ...]
    versions: list[int]
    scale: Tensor
    bias: Tensor

    def is_of(self, statistics: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        """Whether it is still that of these statistics, in this type."""
        return (
            self.bias.dtype == dtype
            and all(x is y for x, y in zip(statistics, self.statistics, strict=True))
            and self.versions == [x._version for x in statistics]
        )


# By convolution. Not in the convolution itself, whose copies have statistics of their own.
_AFFINE: "WeakKeyDictionary[nn.Module, _Affine]" = WeakKeyDictionary()


def _find_affine(conv: nn.Conv2d, norm: FrozenBatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    kept = _AFFINE.get(conv)
    if kept is None or not kept.is_of(statistics, dtype):
        versions = [x._version for x in statistics]
        with torch.no_grad():
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = (norm.bias - norm.running_mean * scale).to(dtype)
        kept = _AFFINE[conv] = _Affine(statistics, versions, scale[:, None, None, None], bias)
    return kept.scale, kept.bias


class _Scale(torch.autograd.Function):
    """Weights times a constant, in the type that a convolution takes; conversions and products are one pass each."""

    @staticmethod
    def forward(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return grad_output * scale, None, None
