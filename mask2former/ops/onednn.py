"""oneDNN, which PyTorch has for x86 processors: whether to ask it, and its layers with what follows in bfloat16."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .recording import is_recording

__all__ = ["bfloat16_convolution_relu", "bfloat16_linear", "has_onednn", "takes_bfloat16"]


@torch.compiler.assume_constant_result
def has_onednn() -> bool:
    """Whether PyTorch has oneDNN, and it is not slower than matrix products, as on x86 processors with AVX2."""
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def takes_bfloat16(x: Tensor) -> bool:
    """Whether the functions below take ``x``: on a CPU, without gradients or a graph, by autocast in bfloat16.

    PyTorch's own functions copy the bias into the result before they multiply, and do not know a ReLU.
    """
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not is_recording()
        and has_onednn()
        and _has_fused_bfloat16()
    )


def bfloat16_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
    """``linear(x, weight, bias)``, and its ReLU if asked for: (..., C) to (..., K) bfloat16, rounded once."""
    then = "relu" if relu else "none"
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), weight.bfloat16(), _dense(bias), then, [], "")
    return result


def bfloat16_convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``relu(conv2d(x, weight, bias, ...) + added)``, (N, K, H', W') bfloat16, rounded once but for rare forms."""
    pixels, filters, *terms = (
        y.bfloat16().contiguous(memory_format=torch.channels_last) for y in (x, weight, added) if y is not None
    )
    how = (filters, _dense(bias), padding, stride, dilation, groups)
    convolve = torch.ops.mkldnn._convolution_pointwise
    if not terms:
        result: Tensor = convolve(pixels, *how, "relu", [], "")
    elif groups > 1 or pixels.is_contiguous() or terms[0].is_contiguous():
        # In groups, or where channels could as well come first, PyTorch's operator cannot add in bfloat16.
        result = F.relu_(convolve(pixels, *how, "none", [], "").add_(*terms))
    else:
        result = convolve(pixels, *terms, *how, "add", 1.0, "relu", [], "")
    return result


def _dense(bias: Tensor | None) -> Tensor | None:
    """A bias in bfloat16, whose numbers are neighbours: oneDNN reads them as if they were, whatever their stride."""
    return None if bias is None else bias.bfloat16().contiguous()


@functools.cache
def _has_fused_bfloat16() -> bool:
    """Whether this PyTorch has these operators, which are for its compiler, and this processor knows bfloat16."""
    operators = torch.ops.mkldnn
    names = ("_linear_pointwise", "_convolution_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(operators, name) for name in names) and bool(operators._is_mkldnn_bf16_supported())
