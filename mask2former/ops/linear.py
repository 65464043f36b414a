"""Linear layers: on CPUs by oneDNN, in float32 as convolutions of one pixel; in bfloat16 and on GPUs with a ReLU.

PyTorch asks oneDNN for convolutions, and MKL for products of matrices, which knows AVX-512 on Intel's processors only.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ._library import has_native_kernel
from .onednn import bfloat16_linear, has_onednn, takes_bfloat16
from .recording import is_inference_on_gpu, is_recording

__all__ = ["FasterLinear", "has_native_float32", "linear", "linear_relu", "without_base"]

# For fewer multiplications than these, arranging the weights takes longer than it saves.
_FEW_MULTIPLICATIONS = 256**3


def has_native_float32(x: Tensor) -> bool:
    """Whether the native operators for convolutions and linear layers take ``x``: float32 on a CPU, not exported."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and has_native_kernel(x)
    )


class FasterLinear(nn.Linear):
    """A linear layer by whichever library is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., K)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` by whichever library is faster; only its first gradients are known.

    Args:
        x: (..., C).
        weight: (K, C).
        bias: (K,).

    Returns:
        (..., K).
    """
    if not _is_plain(weight):
        return F.linear(x, weight, bias)
    if takes_bfloat16(x):
        return bfloat16_linear(x, weight, bias)
    is_differentiated = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in (x, weight, bias))
    if (
        not has_native_float32(x)
        or not has_onednn()
        or (is_differentiated and is_recording())
        or weight.numel() == 0
        # A graph is to serve all numbers of rows.
        or (not is_recording() and x.numel() * weight.shape[0] < _FEW_MULTIPLICATIONS)
    ):
        return F.linear(x, weight, bias)
    multiply = _Linear.apply if is_differentiated else torch.ops.mask2former.linear
    result: Tensor = multiply(x, weight, bias)
    return result


def linear_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """``relu(layer(x))``, (..., C) to (..., K); without gradients on a GPU, or in bfloat16 on a CPU, rounded once."""
    if type(layer) not in (nn.Linear, FasterLinear) or _has_hooks(layer):
        # Not in place, which hooks of a backward pass forbid. Before PyTorch 2.15, a sharded layer would not see that
        # its backward pass begins.
        return F.relu(layer(x))
    known = cast(nn.Linear, layer)
    is_plain = _is_plain(known.weight)
    if is_plain and takes_bfloat16(x):
        return bfloat16_linear(x, known.weight, known.bias, relu=True)
    if is_plain and known.bias is not None and is_inference_on_gpu(x):
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        bias, rows, weight = (y.to(dtype) for y in (known.bias, x.flatten(0, -2), known.weight))
        return torch._addmm_activation(bias, rows, weight.t()).unflatten(0, x.shape[:-1])
    result: Tensor = layer(x).relu_()
    return result


def _is_plain(weight: Tensor) -> bool:
    """Whether it is no tensor of a class of its own, as quantised ones are, which knows PyTorch's functions alone."""
    return type(weight) in (Tensor, nn.Parameter)


def _has_hooks(layer: nn.Module) -> bool:
    """Whether something is to happen when it is called, as to weights that are pruned."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)


def without_base(x: Tensor) -> Tensor:
    """For autograd's functions: the same memory as a tensor of its own, not a view of another."""
    return x.new_empty(0).set_(cast(Any, x))  # whose overload for tensors PyTorch does not declare


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # To autograd the result is a view of the convolution's, into which nobody could write.
        return without_base(torch.ops.mask2former.linear(x, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = torch.ops.mask2former.linear(grad_output, weight.t(), None) if needs_x else None
        rows = grad_output.flatten(0, -2)
        grad_weight = _weight_gradient(x.flatten(0, -2), rows) if needs_weight else None
        return grad_x, grad_weight, rows.sum(dim=0) if needs_bias else None


def _weight_gradient(rows: Tensor, grad_rows: Tensor) -> Tensor:
    """(K, C), of (N, C) and (N, K).

    oneDNN is fast at it with AVX-512 alone, and PyTorch asks it only where there are several threads.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.get_num_threads() == 1:
        return grad_rows.t() @ rows
    pixels, grad_pixels = (x[None, None].permute(0, 3, 1, 2) for x in (rows, grad_rows))  # (1, channels, 1, N)
    weight = rows.new_empty(grad_rows.shape[1], rows.shape[1], 1, 1)  # whose values nobody reads
    once, none = [1, 1], [0, 0]
    _, gradient, _ = torch.ops.aten.convolution_backward(
        grad_pixels, pixels, weight, None, once, none, once, False, none, 1, [False, True, False]
    )
    return gradient.flatten(1)
