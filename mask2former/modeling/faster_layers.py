"""Faster convolutions and linear layers, on CPUs by the native operators."""

from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from ..ops.linear import FasterLinear, has_native_float32, linear, without_base
from ..ops.onednn import has_onednn
from ..ops.recording import is_recording
from ..ops.winograd import conv2d, takes_convolution, transform_weight, winograd_conv2d
from .kept_positions import keep_position_encodings

__all__ = [
    "FasterConv2d",
    "PointwiseConv2d",
    "WinogradConv2d",
    "prepare_for_training",
    "use_faster_layers",
    "use_faster_linear_layers",
    "use_plain_layers",
]

# Of each convolution what _find_affine keeps. Not in the convolution, whose copies have statistics of their own.
_KEPT: "WeakKeyDictionary[nn.Module, _Kept]" = WeakKeyDictionary()

# No module is made of these classes: the functions below change the class of layers, whose parameters and names stay.


class FasterConv2d(nn.Conv2d):
    """A convolution and what follows it in Detectron2's, a frozen batch norm as part of weights that are trained."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        weight, bias = self.weight, self.bias
        norm, activation = getattr(self, "norm", None), getattr(self, "activation", None)
        is_trained = torch.is_grad_enabled() and not is_recording()  # compilers fuse what follows themselves
        if is_trained and type(norm) is FrozenBatchNorm2d:
            weight, bias = _fold(self, norm)
            norm = None
        native = x.dim() == 4 and has_native_float32(x)
        x = self.convolve(x, weight, bias) if native else self._conv_forward(x, weight, bias)
        if native and is_trained:
            x = _Whole.apply(x)
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


def _fold(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution with a frozen batch norm after it."""
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


class _Kept(NamedTuple):
    statistics: tuple[Tensor, ...]
    state: list[Any]
    affine: tuple[Tensor, Tensor]


def _find_affine(conv: nn.Conv2d, norm: FrozenBatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a frozen batch norm multiplies by, (C, 1, 1, 1), and adds, (C,).

    Kept until it gets other statistics, which it does not see where these are written through ``.data``.
    """
    statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    state = [dtype, *(x._version for x in statistics)]
    kept = _KEPT.get(conv)
    if kept is None or state != kept.state or any(x is not y for x, y in zip(statistics, kept.statistics, strict=True)):
        with torch.no_grad():
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            affine = scale[:, None, None, None], (norm.bias - norm.running_mean * scale).to(dtype)
        kept = _KEPT[conv] = _Kept(statistics, state, affine)
    return kept.affine


class _Whole(torch.autograd.Function):
    """What was a view is a tensor of its own to autograd, which copies gradients where a ReLU writes into a view."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return without_base(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


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


def prepare_for_training(model: nn.Module) -> nn.Module:
    """Let the layers of a model that is trained be as fast as its device can do them, in place.

    Parameters and checkpoints stay the same, results differ by rounding. On GPUs, where launching kernels takes longer
    than they do, frozen batch norms and position encodings spare about 600 a step.
    """
    model.to(memory_format=torch.channels_last)
    keep_position_encodings(model)
    if all(x.device.type == "cpu" for x in model.parameters()):
        use_faster_layers(model, trained=True)
        return model
    for module in model.modules():
        if type(module) is Conv2d:
            _fold_when_it_runs(module)
    return model


def use_faster_layers(model: nn.Module, *, trained: bool) -> None:
    """Change the class of convolutions and linear layers to those of this file, in place.

    Args:
        model: on a CPU.
        trained: whether weights will change. If not, those for Winograd's algorithm are transformed now, and not each
            time.
    """
    use_plain_layers(model)
    use_faster_linear_layers(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, Conv2d):  # not subclasses, as below
            _change(module, trained)


def use_faster_linear_layers(model: nn.Module) -> None:
    """Change the class of linear layers, in place, but not of subclasses, which may do something to the weights first.

    Args:
        model: on a CPU.
    """
    for module in model.modules():
        if type(module) is nn.Linear and has_onednn():
            module.__class__ = FasterLinear


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


def _change(conv: nn.Conv2d, trained: bool) -> None:
    if takes_convolution(conv):
        conv.__class__ = WinogradConv2d
        transformed = None if trained else transform_weight(conv.weight.detach()).contiguous()
        conv.register_buffer("transformed", transformed, persistent=False)
    elif conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1 and has_onednn():
        conv.__class__ = PointwiseConv2d
    else:
        _fold_when_it_runs(conv)


def _fold_when_it_runs(conv: Any) -> None:
    if type(getattr(conv, "norm", None)) is FrozenBatchNorm2d:
        conv.__class__ = FasterConv2d
