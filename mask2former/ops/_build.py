"""How the native operators are compiled.

Needs PyTorch's headers and GCC or Clang with C++17. The library uses PyTorch's stable ABI only, so that it serves every
PyTorch from 2.11 on and every Python. This file is also run by setup.py, so it imports nothing of this package.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["BuildError", "build", "library_name"]

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE / "csrc"
# -fno-trapping-math lets selections become vector code; results stay those of IEEE arithmetic.
_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
_STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # of PyTorch 2.11
_INSTRUCTION_SETS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}


class BuildError(Exception):
    """Says in one line why the library cannot be built."""


def library_name() -> str:
    """The library's file name, with a digest of what it is made of: a library of other sources is never loaded."""
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted(_SOURCES.glob("*.[hc]*"))]:
        digest.update(path.read_bytes())
    return f"libmask2former_ops-{digest.hexdigest()[:12]}.so"


def build(folder: Path = _HERE) -> Path:
    """Compiles the library into ``folder``, in place of older ones.

    Returns:
        The library's path.

    Raises:
        BuildError: if something that it needs is missing, or the compiler fails.
    """
    compiler = _find_compiler()
    torch_folder = _find_torch()
    folder.mkdir(parents=True, exist_ok=True)
    # The finished library is moved into place, so that processes that build at the same time cannot see half of one.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
        objects = _compile(compiler, torch_folder, Path(temporary))
        linked = Path(temporary) / library_name()
        _run([*compiler, "-shared", *objects, "-o", str(linked), f"-L{torch_folder / 'lib'}", "-ltorch_cpu"])
        for old in folder.glob("libmask2former_ops-*.so"):
            old.unlink(missing_ok=True)
        return linked.replace(folder / linked.name)


def _find_compiler() -> list[str]:
    if os.name == "nt":
        raise BuildError("the native operators are not available on Windows")
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    found = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if found is None:
        raise BuildError("no C++ compiler was found (install g++ or clang++, or set CXX)")
    return [found]


def _find_torch() -> Path:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise BuildError(
            "PyTorch is not there to build against (install it first, and use pip install --no-build-isolation)"
        ) from error
    folder = Path(torch.__file__).parent
    if not (folder / "include/torch/csrc/stable/library.h").is_file():
        raise BuildError(
            f"PyTorch {torch.__version__} in {folder} lacks the stable ABI's headers; 2.11 and later have them"
        )
    return folder


def _compile(compiler: list[str], torch_folder: Path, folder: Path) -> list[str]:
    """Compiles every object file; the kernels once per instruction set."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    jobs: dict[str, list[str]] = {"bindings": ["ms_deform_attn.cpp", _STABLE_ABI, f"-I{torch_folder / 'include'}"]}
    for name, flags in _INSTRUCTION_SETS.items():
        if is_x86 or name == "baseline":
            jobs[name] = ["ms_deform_attn_kernels.cpp", f"-DMASK2FORMER_KERNELS=kernels_{name}", *flags.split()]
    objects = []
    for name, (source, *options) in jobs.items():
        objects.append(str(folder / f"{name}.o"))
        _run([*compiler, *_FLAGS, *options, "-c", str(_SOURCES / source), "-o", objects[-1]])
    return objects


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} cannot be run ({error})") from error
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines() or ["?"]
        raise BuildError(f"{shlex.join(command)} failed: {errors[0]}")
