"""The CUDA library compiled for the CPU, and tensors whose ends it must not pass."""

import math
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mask2former.ops import _build

__all__ = ["compile_emulation", "guarded"]

HERE = Path(__file__).resolve().parent
SOURCES = Path(_build.__file__).parent / "csrc"


def compile_emulation(folder: Path, *flags: str) -> Path:
    """The CUDA library for the CPU."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or ""]
    if not compiler[0]:
        pytest.skip("no C++ compiler")
    torch_folder = _build._find_torch()
    sources = [SOURCES / "cuda" / name for name in (*_build._CUDA_KERNELS, *_build._CUDA_BINDINGS)]
    sources.append(HERE / "cuda_emulation/emulation.cpp")
    flags = ("-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi", "-fno-strict-aliasing", *flags)
    flags = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-DMASK2FORMER_EMULATION", _build._STABLE_ABI, *flags)
    # First the headers that take CUDA's place.
    include = [f"-I{x}" for x in (HERE / "cuda_emulation", SOURCES, torch_folder / "include")]
    library = folder / "emulation.so"
    command = [*compiler, "-shared", "-x", "c++", *map(str, sources), "-o", str(library), *flags, *include]
    subprocess.run([*command, f"-L{torch_folder / 'lib'}", "-ltorch_cpu"], check=True)
    return library


def guarded(tensor: Tensor) -> Tensor:
    """The same numbers amid NaNs, or large integers: what is read beyond the ends will show in the results."""
    outside = math.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    buffer = torch.full((tensor.numel() + 512,), outside, dtype=tensor.dtype)
    buffer[256:-256] = tensor.flatten()
    return buffer[256:-256].view(tensor.shape)
