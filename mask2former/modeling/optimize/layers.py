"""Faster convolutions and linear layers, on CPUs by the native operators."""

from typing import Any, cast

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from ...ops.linear import FasterLinear, has_native_float32, linear, without_base
from ...ops.onednn import has_onednn
from ...ops.recording import is_recording
from ...ops.winograd import conv2d, takes_convolution, transform_weight, winograd_conv2d
from .frozen_batch_norm import fold_frozen_batch_norm

__all__ = [
    "FasterConv2d",
    "PointwiseConv2d",
    "WinogradConv2d",
    "use_faster_layers",
    "use_faster_linear_layers",
    "use_folded_batch_norms",
    "use_plain_layers",
]

# No module is made of these classes: the functions below change the class of layers, whose parameters and names stay.


class FasterConv2d(nn.Conv2d):
    """A convolution and what follows it in Detectron2's, a frozen batch norm as part of weights that are trained."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        weight, bias = self.weight, self.bias
        norm, activation = getattr(self, "norm", None), getattr(self, "activation", None)
        is_trained = torch.is_grad_enabled() and not is_recording()  # compilers fuse what follows themselves
        if is_trained and type(norm) is FrozenBatchNorm2d:
            weight, bias = fold_frozen_batch_norm(self, norm)
            norm = None
        native = x.dim() == 4 and has_native_float32(x)
        x = self.convolve(x, weight, bias) if native else self._conv_forward(x, weight, bias)
        if native and is_trained:
            x = _WithoutBase.apply(x)
        x = x if norm is None else norm(x)
        return x if activation is None else activation(x)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone, of (N, C, H, W) that the native operators take."""
        return self._conv_forward(x, weight, bias)


class PointwiseConv2d(FasterConv2d):
    """A convolution of 1x1 pixels, which is a linear layer for each."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone."""
        pixels = x[..., :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        return linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)


class WinogradConv2d(FasterConv2d):
    """A convolution of 3x3 pixels by Winograd's algorithm."""

    transformed: Tensor | None
    """Weights that will not change, transformed."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone."""
        is_differentiated = torch.is_grad_enabled() and x.requires_grad
        if self.transformed is None or weight is not self.weight or is_differentiated:
            return conv2d(x, weight, bias)
        return winograd_conv2d(x, self.transformed, bias)


class _WithoutBase(torch.autograd.Function):
    """What was a view is a tensor of its own to autograd, which copies gradients where a ReLU writes into a view."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return without_base(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


def use_faster_layers(model: nn.Module, *, trained: bool) -> None:
    """Change the class of convolutions and linear layers to those of this file, in place.

    Args:
        model: on a CPU.
        trained: whether weights will change. If not, those for Winograd's algorithm are transformed now, and not each
            time.
    """
    use_plain_layers(model)
    use_faster_linear_layers(model)
    use_folded_batch_norms(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, Conv2d, FasterConv2d):  # as with linear layers
            _use_native_operator(module, trained)


def use_faster_linear_layers(model: nn.Module) -> None:
    """Change the class of linear layers, in place, but not of subclasses, which may do something to the weights first.

    Args:
        model: on a CPU.
    """
    for module in model.modules():
        if type(module) is nn.Linear and has_onednn():
            module.__class__ = FasterLinear


def use_folded_batch_norms(model: nn.Module) -> None:
    """Let frozen batch norms be part of the weights of the convolution that they belong to, in place."""
    for module in model.modules():
        if type(module) is Conv2d and type(module.norm) is FrozenBatchNorm2d:
            cast(Any, module).__class__ = FasterConv2d


def _use_native_operator(conv: nn.Conv2d, trained: bool) -> None:
    if takes_convolution(conv):
        conv.__class__ = WinogradConv2d
        transformed = None if trained else transform_weight(conv.weight.detach()).contiguous()
        conv.register_buffer("transformed", transformed, persistent=False)
    elif conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1 and has_onednn():
        conv.__class__ = PointwiseConv2d


def use_plain_layers(model: nn.Module) -> None:
    """Give convolutions and linear layers their classes back, in place."""
    for module in model.modules():
        layer = cast(Any, module)  # whose class may be anything
        if isinstance(module, FasterLinear):
            layer.__class__ = nn.Linear
        elif isinstance(module, FasterConv2d):
            if isinstance(module, WinogradConv2d):
                del module.transformed
            layer.__class__ = Conv2d if hasattr(module, "norm") else nn.Conv2d
