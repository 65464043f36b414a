"""How the native operators are compiled: a library for the CPU, and one for NVIDIA's GPUs where CUDA's compiler is.

Needs PyTorch's headers and GCC or Clang with C++17; for the GPU also nvcc, of the CUDA version of PyTorch, but no GPU.
The libraries use PyTorch's stable ABI only, so that they serve every PyTorch from 2.11 on and every Python. This file
is also run by setup.py, so it imports nothing of this package.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

__all__ = ["INSTALL_NVCC", "BuildError", "build", "build_cuda", "check_commands", "cuda_library_name", "library_name"]

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE / "csrc"
# -fno-trapping-math lets selections become vector code; results stay those of IEEE arithmetic.
_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
_STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # of PyTorch 2.11
_BINDINGS = ("ms_deform_attn.cpp", "masks.cpp", "masked_attention.cpp", "linear.cpp", "points.cpp", "winograd.cpp")
# Compiled once per instruction set.
_KERNELS = (
    "ms_deform_attn_kernels.cpp",
    "mask_kernels.cpp",
    "masked_attention_kernels.cpp",
    "points_kernels.cpp",
    "winograd_kernels.cpp",
)
_INSTRUCTION_SETS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}

_CUDA_BINDINGS = ("ms_deform_attn_cuda.cpp", "masks_cuda.cpp")
_CUDA_KERNELS = ("kernels.cu", "mask_kernels.cu")
_NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=2"]
# Ampere, Hopper, and what can be compiled from Hopper's code when it is loaded: all GPUs from Ampere on.
_CUDA_ARCHITECTURES = "8.0;9.0+PTX"


INSTALL_NVCC = 'pip install "mask2former[cuda]"'


class BuildError(Exception):
    """Says in one line why the library cannot be built."""


def library_name() -> str:
    """The library's file name, with a digest of what it is made of: a library of other sources is never loaded."""
    return f"libmask2former_ops-{_digest(_SOURCES.glob('*.[hc]*'))}.so"


def cuda_library_name() -> str:
    """The same of the CUDA library."""
    return f"libmask2former_ops_cuda-{_digest([_SOURCES / 'schemas.h', *(_SOURCES / 'cuda').glob('*.*')])}.so"


def _digest(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted(sources)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def build(folder: Path = _HERE) -> Path:
    """Compiles the library into ``folder``, in place of older ones.

    Returns:
        The library's path.

    Raises:
        BuildError: if something that it needs is missing, or the compiler fails.
    """
    compiler = _find_compiler()
    torch_folder = _find_torch()
    with _new_library(folder, library_name()) as linked:
        objects = _compile(compiler, torch_folder, linked.parent)
        _run([*compiler, "-shared", *objects, "-o", str(linked), f"-L{torch_folder / 'lib'}", "-ltorch_cpu"])
    return folder / library_name()


def build_cuda(folder: Path = _HERE) -> Path:
    """Compiles the CUDA library into ``folder``, in place of older ones.

    ``CUDA_HOME`` says where CUDA is, and ``TORCH_CUDA_ARCH_LIST`` for which GPUs to compile, as for all extensions of
    PyTorch.

    Returns:
        The library's path.

    Raises:
        BuildError: if something that it needs is missing, or a compiler fails.
    """
    compiler = _find_compiler()
    torch_folder = _find_torch()
    nvcc = _find_nvcc()
    with _new_library(folder, cuda_library_name()) as linked:
        objects = _compile_cuda(compiler, nvcc, torch_folder, linked.parent)
        # The nvcc of CUDA 13.0 that comes from PyPI looks for its runtime in lib64, where it is not.
        folders = (torch_folder / "lib", Path(nvcc).parents[1] / "lib")
        libraries = [*(f"-L{folder}" for folder in folders), "-ltorch_cpu", "-ltorch_cuda"]
        _run([nvcc, "-shared", *objects, "-o", str(linked), *libraries])
    return folder / cuda_library_name()


@contextmanager
def _new_library(folder: Path, name: str) -> Iterator[Path]:
    """Where to make a library, which takes the place of older ones in ``folder`` if that succeeds."""
    folder.mkdir(parents=True, exist_ok=True)
    # The finished library is moved into place, so that processes that build at the same time cannot see half of one.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
        yield Path(temporary) / name
        for old in folder.glob(f"{name.split('-')[0]}-*.so"):
            old.unlink(missing_ok=True)
        (Path(temporary) / name).replace(folder / name)


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


def _find_nvcc() -> str:
    import torch

    if torch.version.cuda is None:
        raise BuildError(f"PyTorch {torch.__version__} is a build without CUDA")
    major = torch.version.cuda.split(".")[0]
    from_pypi = Path(torch.__file__).parents[1] / f"nvidia/cu{major}/bin/nvcc"  # of the very version of PyTorch's CUDA
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = map(shutil.which, (str(from_pypi), "nvcc", "/usr/local/cuda/bin/nvcc"))
    nvcc = f"{home}/bin/nvcc" if home else next(filter(None, places), None)
    if nvcc is None:
        raise BuildError(f"no nvcc was found ({INSTALL_NVCC}, or set CUDA_HOME to where a CUDA toolkit is)")
    version = re.search(r"release (\d+)\.\d+", _run([nvcc, "--version"]))
    if version is None or version[1] != major:
        found = "an unknown version" if version is None else version[0]
        raise BuildError(
            f"{nvcc} is {found}, but PyTorch {torch.__version__} needs CUDA {major} (set CUDA_HOME to one)"
        )
    return nvcc


def _gpu_flags() -> list[str]:
    """What tells nvcc for which GPUs to compile."""
    flags = []
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or ";".join([_CUDA_ARCHITECTURES, *_older_gpus()])
    for name in re.split(r"[;\s]+", listed):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {name!r}; write numbers, as in {_CUDA_ARCHITECTURES!r}")
        number = match[1] + match[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _older_gpus() -> list[str]:
    """The architectures of GPUs of this machine that have none of the code that is compiled by default."""
    import torch

    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    found = {torch.cuda.get_device_capability(device) for device in devices}
    return [f"{major}.{minor}" for major, minor in sorted(found) if major < 8]


def _compile(compiler: list[str], torch_folder: Path, folder: Path) -> list[str]:
    """Compiles every object file."""
    options = [_STABLE_ABI, f"-I{torch_folder / 'include'}"]
    bindings = [_compile_source(compiler, source, "bindings", options, folder) for source in _BINDINGS]
    return _run_all(_compile_kernels(compiler, folder) + bindings)


def compile_kernels(compiler: list[str], folder: Path) -> list[str]:
    """Compiles the kernels once per instruction set of this machine's architecture. They do not need PyTorch."""
    return _run_all(_compile_kernels(compiler, folder))


def _compile_kernels(compiler: list[str], folder: Path) -> list[list[str]]:
    """The commands for that, as :func:`_run_all` takes them."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    commands = []
    for source in _KERNELS:
        for name, flags in _INSTRUCTION_SETS.items():
            if is_x86 or name == "baseline":
                options = [f"-DMASK2FORMER_KERNELS=kernels_{name}", *flags.split()]
                commands.append(_compile_source(compiler, source, name, options, folder))
    return commands


def check_commands(include: Path) -> dict[str, list[str]]:
    """For each source that needs PyTorch, the command that only looks whether it compiles with these headers."""
    options = [*_find_compiler(), *_FLAGS, _STABLE_ABI, f"-I{include}", "-fsyntax-only"]
    commands = {source: [*options, str(_SOURCES / source)] for source in _BINDINGS}
    return commands | {f"cuda/{x}": [*options, "-DUSE_CUDA", str(_SOURCES / "cuda" / x)] for x in _CUDA_BINDINGS}


def _compile_source(compiler: list[str], source: str, name: str, options: list[str], folder: Path) -> list[str]:
    return [*compiler, *_FLAGS, *options, "-c", str(_SOURCES / source), "-o", str(folder / f"{source}.{name}.o")]


def _compile_cuda(compiler: list[str], nvcc: str, torch_folder: Path, folder: Path) -> list[str]:
    """Compiles every object file of the CUDA library."""
    include = f"-I{torch_folder / 'include'}"
    commands = {source: [nvcc, *_NVCC_FLAGS, *_gpu_flags(), include] for source in _CUDA_KERNELS}
    commands |= {source: [*compiler, *_FLAGS, "-DUSE_CUDA", _STABLE_ABI, include] for source in _CUDA_BINDINGS}
    return _run_all(
        [*command, "-c", str(_SOURCES / "cuda" / source), "-o", str(folder / f"{source}.o")]
        for source, command in commands.items()
    )


def _run_all(commands: Iterable[list[str]]) -> list[str]:
    """Runs commands that do not need each other, as many at a time as there are processors.

    Args:
        commands: each ends with the file that it writes; first those that take long, so that none is waited for alone.

    Returns:
        The files, in the commands' order.

    Raises:
        BuildError: of the first of the commands that fails, even if another failed sooner.
    """
    commands = list(commands)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))  # after an error, what has not begun does not begin
    return [command[-1] for command in commands]


def _run(command: list[str]) -> str:
    """The command's standard output."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} cannot be run ({error})") from error
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines() or ["?"]
        raise BuildError(f"{shlex.join(command)} failed: {errors[0]}")
    return result.stdout
