"""Multi-scale deformable attention by Triton, on GPUs for which the CUDA library has not been built."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._library import flat_arguments
from ._registration import fake_backward, fake_forward, save_inputs
from .recording import is_exporting

__all__ = ["GPU_DTYPES", "find_triton", "has_triton_kernel", "triton_ms_deform_attn"]

GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def has_triton_kernel(value: Tensor) -> bool:
    """Whether Triton takes ``value``: it is on a GPU, nothing is exported, and gradients need no fixed order."""
    return (
        value.is_cuda
        and value.dtype in GPU_DTYPES
        and not is_exporting()
        and not torch.are_deterministic_algorithms_enabled()
        and _is_there()
    )


def triton_ms_deform_attn(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *geometry: Tensor) -> Tensor:
    """:func:`mask2former.ops.ms_deform_attn` by Triton."""
    return _forward(value, *flat_arguments(spatial_shapes, geometry))


@torch.compiler.assume_constant_result
def _is_there() -> bool:
    return find_triton()


@functools.cache
def find_triton() -> bool:
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


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *geometry = ctx.saved_tensors
    grad_value, *grad_geometry = _backward(grad_output, value, ctx.spatial_shapes, *geometry)
    return grad_value, None, *grad_geometry


_forward.register_fake(fake_forward)
_backward.register_fake(fake_backward)
_forward.register_autograd(_gradients, setup_context=save_inputs)
