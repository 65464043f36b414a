"""Multi-scale deformable attention by Triton, on GPUs for which the CUDA library has not been built."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["has_triton_kernel", "triton_ms_deform_attn"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def has_triton_kernel(value: Tensor) -> bool:
    """Whether Triton takes ``value``: it is on a GPU, nothing is exported, and gradients need no fixed order."""
    return (
        value.is_cuda
        and value.dtype in _DTYPES
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
        and not torch.are_deterministic_algorithms_enabled()
        and _is_there()
    )


def triton_ms_deform_attn(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *geometry: Tensor) -> Tensor:
    """:func:`mask2former.ops.ms_deform_attn` by Triton."""
    locations, weights = (x.float() for x in geometry)
    return _forward(value, [size for shape in spatial_shapes for size in shape], locations, weights)


@torch.compiler.assume_constant_result
def _is_there() -> bool:
    return _find_triton()


@functools.cache
def _find_triton() -> bool:
    return os.environ.get("MASK2FORMER_OPS") != "reference" and importlib.util.find_spec("triton") is not None


# Operators, so that torch.compile needs not look inside. Triton is imported at the first call.


@torch.library.custom_op("mask2former::triton_ms_deform_attn", mutates_args=())
def _forward(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    from . import triton_kernels

    return triton_kernels.forward(value, spatial_shapes, locations, weights)


@torch.library.custom_op("mask2former::triton_ms_deform_attn_backward", mutates_args=())
def _backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_kernels

    return triton_kernels.backward(grad_output, value, spatial_shapes, locations, weights)


@_forward.register_fake
def _(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_backward.register_fake
def _(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, *geometry = inputs
    ctx.save_for_backward(value, *geometry)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *geometry = ctx.saved_tensors
    grad_value, *grad_geometry = _backward(grad_output, value, ctx.spatial_shapes, *geometry)
    return grad_value, None, *grad_geometry


_forward.register_autograd(_gradients, setup_context=_setup_context)
