"""Finds and loads the native operators.

The environment variable ``MASK2FORMER_OPS`` says what to use:

- ``auto`` (the default): the native operators where they have been built, else the PyTorch reference;
- ``reference``: the PyTorch reference;
- ``jit``: the native operators, compiled at first use into the user's cache where they have not been built.
"""

import ctypes
import functools
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._build import INSTALL_NVCC, BuildError, build, build_cuda, cuda_library_name, library_name
from ._registration import register
from .recording import is_exporting

__all__ = [
    "flat_arguments",
    "has_native_kernel",
    "load_cuda_library",
    "load_library",
    "native_fused_ms_deform_attn",
    "native_ms_deform_attn",
]

_PACKAGE = Path(__file__).resolve().parent
_MODES = ("auto", "reference", "jit")
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
_HOW_TO_BUILD = "build them with: python -m mask2former.ops.build"
_LOADING = threading.Lock()
_is_loaded: bool | None = None
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
    """Whether the native operators are there. The first call loads them, or says in one line of log why it cannot."""
    global _is_loaded
    if _is_loaded is None:  # else nothing is locked, which a fork might find in another thread
        with _LOADING:
            if _is_loaded is None:
                _is_loaded = _load_library()
    return _is_loaded


@torch.compiler.assume_constant_result
def load_cuda_library(device: int) -> bool:
    """The same of the GPU with this number; :func:`load_library` comes first, because it brings the schemas."""
    return _load_cuda_library() is not None and _has_code_for(device)


def _load_library() -> bool:
    mode = os.environ.get("MASK2FORMER_OPS", "auto")
    if mode not in _MODES:
        raise ValueError(f"MASK2FORMER_OPS is {mode!r}; set it to one of {', '.join(_MODES)}, or not at all.")
    if mode == "reference" or _load(mode) is None:
        return False
    register()
    return True


@functools.cache
def _load_cuda_library() -> Path | None:
    """Where the CUDA library is, if it could be loaded."""
    if torch.version.cuda is None or not torch.cuda.is_available():  # AMD's GPUs are CUDA devices, too
        return None
    return _load(os.environ.get("MASK2FORMER_OPS", "auto"), cuda=True)


@functools.cache
def _has_code_for(device: int) -> bool:
    if ctypes.CDLL(str(_load_cuda_library())).mask2former_has_code_for(device):
        return True
    major, minor = torch.cuda.get_device_capability(device)
    _logger.warning(
        "Mask2Former is slower than it could be on %s: its native operators have no code for this GPU; "
        "build them with: TORCH_CUDA_ARCH_LIST=%d.%d python -m mask2former.ops.build",
        torch.cuda.get_device_name(device),
        major,
        minor,
    )
    return False


def _load(mode: str, *, cuda: bool = False) -> Path | None:
    """Find and load a library, or say why not."""
    # On a GPU, Triton mostly takes the place of the slowest part, deformable attention.
    slow = "is slower than it could be on the GPU" if cuda else "runs slowly"
    how = f"{_HOW_TO_BUILD} (which needs nvcc: {INSTALL_NVCC})" if cuda else _HOW_TO_BUILD
    try:
        path = _find_library(mode, cuda=cuda)
        if path is None:
            _logger.warning("Mask2Former %s: its native operators are not built; %s", slow, how)
            return None
        torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        _logger.warning("Mask2Former %s: its native operators cannot be loaded: %s; %s", slow, error, how)
        return None
    _logger.info("Loaded %s", path)
    return path


def _find_library(mode: str, *, cuda: bool = False) -> Path | None:
    # A user without a home, as in many containers, has a "~" that no file lies in.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mask2former"
    name = cuda_library_name() if cuda else library_name()
    for folder in (_PACKAGE, cache):
        if (folder / name).is_file():
            return folder / name
    if mode == "jit":
        if not cache.is_absolute():
            raise BuildError("there is no home folder to compile into; let $XDG_CACHE_HOME name a folder")
        _logger.info("Compiling the native operators into %s", cache)
        return build_cuda(cache) if cuda else build(cache)
    return None
