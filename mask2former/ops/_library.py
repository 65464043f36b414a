"""Finds and loads the native operators, and registers what PyTorch needs to know about them.

The environment variable ``MASK2FORMER_OPS`` says what to use:

- ``auto`` (the default): the native operators where they have been built, else the PyTorch reference;
- ``reference``: the PyTorch reference;
- ``jit``: the native operators, compiled at first use into the user's cache where they have not been built.
"""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import BuildError, build, library_name

__all__ = ["has_native_kernel", "native_ms_deform_attn"]

_PACKAGE = Path(__file__).resolve().parent
_MODES = ("auto", "reference", "jit")
_HOW_TO_BUILD = "build it with: python -m mask2former.ops.build"
_logger = logging.getLogger(__name__)


def has_native_kernel(value: Tensor) -> bool:
    """Whether the native operators take ``value``: device and dtype fit, nothing is exported, the library is there."""
    return (
        value.device.type == "cpu"
        and value.dtype in (torch.float32, torch.bfloat16)
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
        and load_library()
    )


def native_ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """:func:`mask2former.ops.ms_deform_attn` by the native operator."""
    sizes = [size for shape in spatial_shapes for size in shape]
    locations, weights = sampling_locations.float(), attention_weights.float()
    return torch.ops.mask2former.ms_deform_attn(value, sizes, locations, weights)


@torch.compiler.assume_constant_result
def load_library() -> bool:
    """Loads the native operators at the first call, and says in one line of log if that cannot be."""
    return _load_library()


@functools.cache
def _load_library() -> bool:
    mode = os.environ.get("MASK2FORMER_OPS", "auto")
    if mode not in _MODES:
        raise ValueError(f"MASK2FORMER_OPS is {mode!r}; set it to one of {', '.join(_MODES)}, or not at all.")
    if mode == "reference":
        return False
    try:
        path = _find_library(mode)
        if path is None:
            _logger.warning("Deformable attention runs slowly: its native library is not built; %s", _HOW_TO_BUILD)
            return False
        torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        _logger.warning("Deformable attention runs slowly: no native library: %s; %s", error, _HOW_TO_BUILD)
        return False
    _register()
    _logger.info("Loaded %s", path)
    return True


def _find_library(mode: str) -> Path | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mask2former"
    name = library_name()
    for folder in (_PACKAGE, cache):
        if (folder / name).is_file():
            return folder / name
    if mode == "jit":
        _logger.info("Compiling the native operators into %s", cache)
        return build(cache)
    return None


def _register() -> None:
    torch.library.register_fake("mask2former::ms_deform_attn", _forward_fake)
    torch.library.register_fake("mask2former::ms_deform_attn_backward", _backward_fake)
    torch.library.register_autograd("mask2former::ms_deform_attn", _backward, setup_context=_setup_context)
    _REGISTRATIONS.impl("ms_deform_attn", _autocast, "AutocastCPU")


# Holds what is registered without a function of torch.library's own; what it holds goes when it goes.
_REGISTRATIONS = torch.library.Library("mask2former", "FRAGMENT")


def _forward_fake(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _backward_fake(
    grad_output: Tensor, value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


def _autocast(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Values stay in the dtype that autocast gave them; locations and weights need float32's resolution."""
    with torch.autocast("cpu", enabled=False):
        return torch.ops.mask2former.ms_deform_attn(value, spatial_shapes, locations.float(), weights.float())
