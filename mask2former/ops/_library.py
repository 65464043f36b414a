"""Finds and loads the native operators, and registers what PyTorch needs to know about them.

The environment variable ``MASK2FORMER_OPS`` says what to use:

- ``auto`` (the default): the native operators where they have been built, else the PyTorch reference;
- ``reference``: the PyTorch reference;
- ``jit``: the native operators, compiled at first use into the user's cache where they have not been built.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._build import BuildError, build, build_cuda, cuda_library_name, library_name
from .recording import is_exporting

__all__ = [
    "fake_backward",
    "fake_forward",
    "flat_arguments",
    "has_native_kernel",
    "native_fused_ms_deform_attn",
    "native_ms_deform_attn",
    "save_inputs",
]

_PACKAGE = Path(__file__).resolve().parent
_MODES = ("auto", "reference", "jit")
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
_HOW_TO_BUILD = "build it with: python -m mask2former.ops.build"
_logger = logging.getLogger(__name__)


def has_native_kernel(value: Tensor) -> bool:
    """Whether the native operators take ``value``: device and dtype fit, nothing is exported, the library is there."""
    return (
        value.dtype in _DTYPES.get(value.device.type, ())
        and not is_exporting()
        and load_library()
        and (value.device.type == "cpu" or load_cuda_library(value.device.index))
    )


def native_ms_deform_attn(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *geometry: Tensor) -> Tensor:
    """:func:`mask2former.ops.ms_deform_attn` by the native operator."""
    return torch.ops.mask2former.ms_deform_attn(value, *flat_arguments(spatial_shapes, geometry))


def native_fused_ms_deform_attn(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *geometry: Tensor) -> Tensor:
    """:func:`mask2former.ops.fused_ms_deform_attn` by the native operator."""
    return torch.ops.mask2former.fused_ms_deform_attn(value, *flat_arguments(spatial_shapes, geometry))


def flat_arguments(spatial_shapes: Sequence[tuple[int, int]], geometry: Sequence[Tensor]) -> tuple[Any, ...]:
    """What the operators take after the value: heights and widths in one list, and float32 tensors."""
    return [size for shape in spatial_shapes for size in shape], *(x.float() for x in geometry)


@torch.compiler.assume_constant_result
def load_library() -> bool:
    """Loads the native operators at the first call, and says in one line of log if that cannot be."""
    return _load_library()


@torch.compiler.assume_constant_result
def load_cuda_library(device: int) -> bool:
    """The same for the GPU with this number; :func:`load_library` comes first, for it brings the schemas."""
    return _load_cuda_library() is not None and _has_code_for(device)


@functools.cache
def _load_library() -> bool:
    mode = os.environ.get("MASK2FORMER_OPS", "auto")
    if mode not in _MODES:
        raise ValueError(f"MASK2FORMER_OPS is {mode!r}; set it to one of {', '.join(_MODES)}, or not at all.")
    if mode == "reference" or _load(mode) is None:
        return False
    _register()
    return True


@functools.cache
def _load_cuda_library() -> Path | None:
    """Where the CUDA library is, if it could be loaded; AMD's GPUs call themselves CUDA devices too."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return _load(os.environ.get("MASK2FORMER_OPS", "auto"), cuda=True)


@functools.cache
def _has_code_for(device: int) -> bool:
    if ctypes.CDLL(str(_load_cuda_library())).mask2former_has_code_for(device):
        return True
    major, minor = torch.cuda.get_device_capability(device)
    _logger.warning(
        "Deformable attention is slower than it could be on %s: its native library has no code for this GPU; "
        "build it with: TORCH_CUDA_ARCH_LIST=%d.%d python -m mask2former.ops.build",
        torch.cuda.get_device_name(device),
        major,
        minor,
    )
    return False


def _load(mode: str, *, cuda: bool = False) -> Path | None:
    """Finds and loads a library, or says why not."""
    slow = "is slower than it could be on the GPU" if cuda else "runs slowly"  # for there is Triton, mostly
    how = f"{_HOW_TO_BUILD} (which needs nvcc)" if cuda else _HOW_TO_BUILD
    try:
        path = _find_library(mode, cuda=cuda)
        if path is None:
            _logger.warning("Deformable attention %s: its native library is not built; %s", slow, how)
            return None
        torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        _logger.warning("Deformable attention %s: no native library: %s; %s", slow, error, how)
        return None
    _logger.info("Loaded %s", path)
    return path


def _find_library(mode: str, *, cuda: bool = False) -> Path | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mask2former"
    name = cuda_library_name() if cuda else library_name()
    for folder in (_PACKAGE, cache):
        if (folder / name).is_file():
            return folder / name
    if mode == "jit":
        _logger.info("Compiling the native operators into %s", cache)
        return build_cuda(cache) if cuda else build(cache)
    return None


# Holds what is registered without a function of torch.library's own; what it holds goes when it goes.
_REGISTRATIONS = torch.library.Library("mask2former", "FRAGMENT")


def _register() -> None:
    """Tells PyTorch the operators' results without running them, their gradients, and what autocast means to them."""
    for name, backward in (("ms_deform_attn", _backward), ("fused_ms_deform_attn", _fused_backward)):
        torch.library.register_fake(f"mask2former::{name}", fake_forward)
        torch.library.register_fake(f"mask2former::{name}_backward", fake_backward)
        torch.library.register_autograd(f"mask2former::{name}", backward, setup_context=save_inputs)
        operator = getattr(torch.ops.mask2former, name)
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _REGISTRATIONS.impl(name, functools.partial(_autocast, device, operator), key)
    torch.library.register_fake("mask2former::resize_masks", _resize_masks_fake)
    torch.library.register_fake("mask2former::binarise_masks", _binarise_masks_fake)
    torch.library.register_fake("mask2former::compete_masks", _compete_masks_fake)
    torch.library.register_fake("mask2former::masked_attention", _masked_attention_fake)
    torch.library.register_fake("mask2former::masked_attention_backward", _masked_attention_backward_fake)
    torch.library.register_autograd(
        "mask2former::masked_attention", _masked_attention_backward, setup_context=_save_attention
    )
    torch.library.register_fake("mask2former::linear", _linear_fake)
    torch.library.register_fake("mask2former::sample_pixels", _sample_pixels_fake)
    torch.library.register_fake("mask2former::sample_masks", _sample_masks_fake)
    torch.library.register_fake("mask2former::most_uncertain", _most_uncertain_fake)
    torch.library.register_fake("mask2former::winograd_conv2d", _winograd_conv2d_fake)
    torch.library.register_fake("mask2former::winograd_weight_gradient", _winograd_weight_gradient_fake)


# Below, `geometry` is what an operator takes after the value and the spatial shapes: locations (N, Q, M, L, P, 2) and
# weights (N, Q, M, L, P), or the fused operator's reference points, offsets and logits of these shapes.


def fake_forward(value: Tensor, spatial_shapes: list[int], *geometry: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], geometry[-1].shape[1], value.shape[2] * value.shape[3])


def fake_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: list[int], *geometry: Tensor, deterministic: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    offsets, attention = geometry[-2:]
    return value.new_empty(value.shape), offsets.new_empty(offsets.shape), attention.new_empty(attention.shape)


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, *geometry = inputs
    ctx.save_for_backward(value, *geometry)


@once_differentiable
def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *geometry = ctx.saved_tensors
    grad_value, *grad_geometry = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, *geometry, deterministic=torch.are_deterministic_algorithms_enabled()
    )
    return grad_value, None, *grad_geometry


@once_differentiable
def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, *geometry = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.mask2former.fused_ms_deform_attn_backward(
        grad_output,
        value,
        ctx.spatial_shapes,
        reference_points,
        *geometry,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    grad_points = None
    if ctx.needs_input_grad[2]:
        # A reference point moves its query's points of all heads, by the level's size for a whole image.
        sizes = grad_offsets.new_tensor(ctx.spatial_shapes).view(-1, 2).flip(-1)  # (L, 2) as (width, height)
        grad_points = (grad_offsets.sum(dim=(2, 4)) * sizes).sum_to_size(reference_points.shape)
    return grad_value, None, grad_points, grad_offsets, grad_logits


def _autocast(
    device: str, operator: Callable[..., Tensor], value: Tensor, spatial_shapes: list[int], *geometry: Tensor
) -> Tensor:
    """Values stay in the dtype that autocast gave them; all else needs float32's resolution."""
    with torch.autocast(device, enabled=False):
        return operator(value, spatial_shapes, *(x.float() for x in geometry))


# The operators on masks take logits (Q, h, w) and, for rows and columns, where in a mask an output pixel comes from:
# see mask2former.ops.masks.


def _resize_masks_fake(
    logits: Tensor,
    first_row: Tensor,
    row_weights: Tensor,
    first_column: Tensor,
    column_weights: Tensor,
    begin: int,
    end: int,
    sigmoid: bool,
) -> Tensor:
    shape = (logits.shape[0], end - begin, first_column.shape[0])
    return logits.new_empty(shape, dtype=torch.float32)


def _binarise_masks_fake(
    logits: Tensor, first_row: Tensor, row_weights: Tensor, first_column: Tensor, column_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = logits.shape[0]
    masks = logits.new_empty((count, first_row.shape[0], first_column.shape[0]), dtype=torch.bool)
    probabilities, boxes = (logits.new_empty(shape, dtype=torch.float32) for shape in (count, (count, 4)))
    return masks, logits.new_empty(count, dtype=torch.int64), probabilities, boxes


def _compete_masks_fake(
    logits: Tensor,
    scores: Tensor,
    first_row: Tensor,
    row_weights: Tensor,
    first_column: Tensor,
    column_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    size = (first_row.shape[0], first_column.shape[0])
    winner, inside = logits.new_empty(size, dtype=torch.int32), logits.new_empty(size, dtype=torch.bool)
    return winner, inside, logits.new_empty((3, logits.shape[0]), dtype=torch.int64)


def _masked_attention_fake(
    query: Tensor, key: Tensor, value: Tensor, attend: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    logsumexp = query.new_empty((query.shape[0], num_heads, query.shape[1]), dtype=torch.float32)
    return query.new_empty(query.shape), logsumexp


def _masked_attention_backward_fake(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attend: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


@once_differentiable
def _masked_attention_backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.mask2former.masked_attention_backward(grad_output, *ctx.saved_tensors, ctx.num_heads)
    return *gradients, None, None


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _sample_pixels_fake(pixels: Tensor, points: Tensor) -> Tensor:
    return pixels.new_empty((points.shape[0], pixels.shape[2]))


def _sample_masks_fake(maps: Tensor, indices: Tensor, ids: Tensor, points: Tensor) -> Tensor:
    return points.new_empty((points.shape[0], indices.shape[0], points.shape[2]))


def _most_uncertain_fake(logits: Tensor, candidates: Tensor, chosen: int) -> Tensor:
    return candidates.new_empty((candidates.shape[0], chosen, 2))


def _winograd_conv2d_fake(pixels: Tensor, weight: Tensor, bias: Tensor, *, onednn: bool = False) -> Tensor:
    return pixels.new_empty((*pixels.shape[:3], weight.shape[1]))


def _winograd_weight_gradient_fake(pixels: Tensor, grad_output: Tensor) -> Tensor:
    return pixels.new_empty((36, grad_output.shape[3], pixels.shape[3]))
