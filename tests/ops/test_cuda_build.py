"""Compiling the CUDA operators, which needs nvcc but no GPU."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mask2former.ops import _build as build

# Loads the two libraries, and says for which devices the dispatcher then has kernels.
LOAD = """
import sys, torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
attention = ("ms_deform_attn", "fused_ms_deform_attn")
masks = ("resize_masks", "binarise_masks", "compete_masks")
for name in (*attention, *(x + "_backward" for x in attention), *masks):
    print(has_kernel("mask2former::" + name, "CPU"), has_kernel("mask2former::" + name, "CUDA"))
"""


@pytest.fixture
def fake_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Makes a compiler that says it is of some version, for a PyTorch with CUDA 13.2."""

    def make(version: str) -> None:
        nvcc = tmp_path / "bin/nvcc"
        nvcc.parent.mkdir(exist_ok=True)
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {version}'\n")
        nvcc.chmod(0o755)

    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return make


@pytest.mark.timeout(1200)  # a minute of work, but it may get little of a machine
def test_compiles_without_warnings_and_spills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For all GPUs that are compiled for by default; and the library loads where there is no GPU."""
    try:
        build._find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    output = []

    def run(command: list[str]) -> str:
        result = subprocess.run(command, capture_output=True, text=True)
        output.append(result.stderr)
        assert result.returncode == 0, result.stderr
        return result.stdout

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(build, "_older_gpus", list)
    strict = ["-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-Xptxas=-v"]
    monkeypatch.setattr(build, "_NVCC_FLAGS", [*build._NVCC_FLAGS, *strict])
    library = build.build_cuda(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [build.cuda_library_name()]

    kernels = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores",
        "".join(output),
        re.DOTALL,
    )
    assert {architecture for _, architecture, _ in kernels} == {"sm_80", "sm_90"}
    assert sum("value_gradient_kernel" in name for name, *_ in kernels) == 2 * 6  # dtypes, ways to add
    assert sum("backward_any_kernel" in name for name, *_ in kernels) == 2 * 6
    assert sum("forward_any_kernel" in name for name, *_ in kernels) == 2 * 3  # dtypes
    for name in ("forward", "sample_gradient"):
        assert sum(f"{name}_kernel" in kernel for kernel, *_ in kernels) == 2 * 6  # dtypes, whether there are 8 heads
    for name in ("resize", "binarise", "compete"):
        assert sum(f"{name}_kernel" in kernel for kernel, *_ in kernels) == 2 * 3 * 3  # dtypes, numbers of taps
    # Variables that do not fit into the registers would be in memory.
    assert [kernel for kernel in kernels if int(kernel[2])] == []

    cpu_library = build._HERE / build.library_name()
    if cpu_library.is_file():
        command = [sys.executable, "-c", LOAD, cpu_library, library]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == 7 * "True True\n"


def test_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_nvcc: Callable[[str], None]
) -> None:
    with pytest.raises(build.BuildError, match=r"bin/nvcc cannot be run"):
        build._find_nvcc()
    fake_nvcc("release 12.8, V12.8.61")
    with pytest.raises(
        build.BuildError, match=r"bin/nvcc is release 12.8, but PyTorch .* needs CUDA 13 \(set CUDA_HOM"
    ):
        build._find_nvcc()
    fake_nvcc("no number")
    with pytest.raises(build.BuildError, match="is an unknown version, but"):
        build._find_nvcc()
    fake_nvcc("release 13.0, V13.0.88")
    assert build._find_nvcc() == str(tmp_path / "bin/nvcc")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.BuildError, match=r"no nvcc was found \(pip install .* or set CUDA_HOME"):
        build._find_nvcc()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.BuildError, match="is a build without CUDA"):
        build._find_nvcc()


def test_takes_the_nvcc_that_was_installed_beside_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_nvcc: Callable[[str], None]
) -> None:
    fake_nvcc("release 13.2, V13.2.86")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch/__init__.py"))
    assert build._find_nvcc() == str(tmp_path / "bin/nvcc")
    folder = tmp_path / "nvidia/cu13/bin"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "bin/nvcc", folder)
    assert build._find_nvcc() == str(folder / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build._find_nvcc() == str(tmp_path / "bin/nvcc")


def test_links_with_the_runtime_beside_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the nvcc of CUDA 13.0 from PyPI does not look for it."""
    commands = []

    def run(command: list[str]) -> str:
        commands.append(command)
        Path(command[command.index("-o") + 1]).touch()
        return ""

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build, "_find_nvcc", lambda: str(tmp_path / "cu13/bin/nvcc"))
    assert build.build_cuda(tmp_path / "ops").is_file()
    assert f"-L{tmp_path / 'cu13/lib'}" in commands[-1]


def test_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(build, "_older_gpus", list)
    assert build._gpu_flags() == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 10.0a+PTX")
    assert build._gpu_flags() == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_100a,code=sm_100a",
        "-gencode=arch=compute_100a,code=compute_100a",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere")
    with pytest.raises(build.BuildError, match=r"TORCH_CUDA_ARCH_LIST has 'Ampere'; write numbers, as in '8\.0;9\.0"):
        build._gpu_flags()


def test_older_gpus_of_the_machine_are_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    without = build._gpu_flags()
    gpus = [(7, 5), (9, 0), (7, 5), (12, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", gpus.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build._gpu_flags() == without  # of a driver that is too old
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build._gpu_flags() == [*without, "-gencode=arch=compute_75,code=sm_75"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert build._gpu_flags() == ["-gencode=arch=compute_90,code=sm_90"]


def test_the_name_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = build.cuda_library_name()
    copy = shutil.copytree(build._SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build, "_SOURCES", copy)
    assert build.cuda_library_name() == name
    (copy / "vector.h").write_text("changed, but the CPU's")
    assert build.cuda_library_name() == name
    (copy / "cuda/lanes.cuh").write_text("changed")
    assert build.cuda_library_name() != name
