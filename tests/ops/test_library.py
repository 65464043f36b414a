"""Building, finding and loading the native operators."""

import importlib
import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mask2former.ops import _build as build
from mask2former.ops import _library

load_library = _library._load_library  # as at the first call
load_cuda_library = _library._load_cuda_library.__wrapped__

RUN = """
import sys, torch
torch.ops.load_library(sys.argv[1])
value, weights = torch.ones(1, 6, 2, 8), torch.ones(1, 5, 2, 1, 4)
output = torch.ops.mask2former.ms_deform_attn(value, [2, 3], torch.full((*weights.shape, 2), 0.5), weights)
assert output.shape == (1, 5, 16) and bool((output == 4).all()), output
"""


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Looks for the library in an empty package and an empty cache, which is returned."""
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MASK2FORMER_OPS", raising=False)
    return tmp_path / "cache/mask2former"


def test_builds_a_library_that_needs_only_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    built = build._HERE / build.library_name()
    if built.is_file():  # and optimised: to do that again would take most of a minute
        subprocess.run([sys.executable, "-c", RUN, built], check=True)
        monkeypatch.setattr(build, "_FLAGS", [*build._FLAGS, "-O0"])
    older = tmp_path / "libmask2former_ops-0123456789ab.so"
    older.touch()
    path = build.build(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    subprocess.run([sys.executable, "-c", RUN, path], check=True)


ANOTHER_ARCHITECTURE = """
#include <torch/headeronly/util/Exception.h>
#include <memory>
#include <string>
#undef __x86_64__
#include "cpu.h"
extern const int kernels_baseline = 0;
extern const int kernels_avx2, kernels_avx512;
int main() { return MASK2FORMER_CHOOSE(kernels); }
"""


def test_other_architectures_need_the_baseline_alone(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "source.cpp", tmp_path / "program"
    source.write_text(ANOTHER_ARCHITECTURE)
    include = [f"-I{build._SOURCES}", f"-I{Path(torch.__file__).parent / 'include'}"]
    # Without optimisation, which would leave out what is not used.
    subprocess.run([compiler, "-std=c++17", "-O0", *include, source, "-o", program], check=True)
    subprocess.run([program], check=True)


def test_the_name_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = build.library_name()
    copy = shutil.copytree(build._SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build, "_SOURCES", copy)
    assert build.library_name() == name
    (copy / "vector.h").write_text("changed")
    assert build.library_name() != name


def test_build_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "/absent/c++")
    with pytest.raises(build.BuildError, match=r"the compiler /absent/c\+\+ cannot be run"):
        build.build(tmp_path)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match=r"false .* failed"):
        build.build(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found"):
        build.build(tmp_path)
    monkeypatch.setattr(build, "_find_compiler", lambda: ["c++"])
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch/__init__.py"))
    with pytest.raises(build.BuildError, match="lacks the stable ABI's headers"):
        build.build(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(build.BuildError, match="PyTorch is not there to build against"):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_installation_of_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = importlib.import_module("mask2former.ops.build")
    monkeypatch.setattr(command, "build", lambda: build.build(tmp_path / "file/ops"))
    with pytest.raises(
        SystemExit, match=r"not built: .*file/ops'; MASK2FORMER_OPS=jit compiles them into a cache of yours"
    ):
        command.main()


def test_objects_are_compiled_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.os, "cpu_count", lambda: 2)
    # Each waits for the other's file: one after the other, the first would give up.
    script = 'touch "$1"; for _ in $(seq 100); do test -e "$0" && exit; sleep 0.1; done; echo error: alone >&2; exit 1'
    first, second = str(tmp_path / "first.o"), str(tmp_path / "second.o")
    commands = [["sh", "-c", script, second, first], ["sh", "-c", script, first, second]]
    assert build._run_all(commands) == [first, second]


def test_the_first_of_the_sources_that_do_not_compile_is_reported() -> None:
    commands = [["true"], ["sh", "-c", "sleep 0.5; echo error: early >&2; exit 1"]]
    commands += [["sh", "-c", "echo error: late >&2; exit 1"]] * 3
    with pytest.raises(build.BuildError, match="failed: error: early"):
        build._run_all(commands)


def test_says_once_how_to_build(nothing_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not load_library()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "are not built; build them with: python -m mask2former.ops.build" in record.getMessage()


def test_reference_mode_is_silent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "reference")
    assert not load_library()
    assert not caplog.records


def test_jit_mode_builds_into_the_cache(nothing_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "build", lambda folder: folder / build.library_name())
    assert _library._find_library("auto") is None
    path = _library._find_library("jit")
    assert path == nothing_built / build.library_name()
    path.parent.mkdir(parents=True)
    path.touch()
    assert _library._find_library("auto") == path


def test_jit_mode_without_a_compiler_falls_back(
    nothing_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "jit")
    monkeypatch.setenv("CXX", "/absent/c++")
    assert not load_library()
    assert "/absent/c++ cannot be run" in caplog.records[-1].getMessage()


def test_a_user_without_a_home(
    nothing_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 12345)  # who is in no list of users
    assert not load_library()
    assert "native operators are not built" in caplog.records[-1].getMessage()
    monkeypatch.setenv("MASK2FORMER_OPS", "jit")
    assert not load_library()
    assert "let $XDG_CACHE_HOME name a folder" in caplog.records[-1].getMessage()


def test_a_broken_library_falls_back(nothing_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing_built.mkdir(parents=True)
    (nothing_built / build.library_name()).write_text("not a library")
    assert not load_library()
    assert "its native operators cannot be loaded: " in caplog.records[-1].getMessage()


def test_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "fast")
    with pytest.raises(ValueError, match="MASK2FORMER_OPS is 'fast'; set it to one of auto, reference, jit"):
        load_library()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch says where there is a GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))


@pytest.mark.usefixtures("gpu")
def test_says_how_to_build_for_the_gpu(nothing_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_cuda_library() is None
    (record,) = caplog.records
    assert (
        "is slower than it could be on the GPU: its native operators are not built; build them" in record.getMessage()
    )
    assert record.getMessage().endswith('(which needs nvcc: pip install "mask2former[cuda]")')


@pytest.mark.usefixtures("gpu")
def test_jit_mode_builds_for_the_gpu(nothing_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "jit")
    monkeypatch.setattr(_library, "build_cuda", lambda folder: folder / build.cuda_library_name())
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert load_cuda_library() == nothing_built / build.cuda_library_name()
    assert loaded == [nothing_built / build.cuda_library_name()]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("what", "value"), [("version.cuda", None), ("cuda.is_available", lambda: False)])
def test_the_cuda_library_is_for_nvidias_gpus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str, value: object
) -> None:
    monkeypatch.setattr(f"torch.{what}", value)
    assert load_cuda_library() is None
    assert not caplog.records


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("has_code", [0, 1])
def test_a_gpu_that_was_not_compiled_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_code: int
) -> None:
    library = SimpleNamespace(mask2former_has_code_for=lambda device: has_code)
    monkeypatch.setattr(_library, "_load_cuda_library", lambda: Path("library.so"))
    monkeypatch.setattr(_library.ctypes, "CDLL", lambda _: library)
    assert _library._has_code_for.__wrapped__(0) == bool(has_code)
    messages = [record.getMessage() for record in caplog.records]
    assert has_code or "on Tesla T4: its native operators have no code for this GPU" in messages[0]
    assert has_code or messages[0].endswith("TORCH_CUDA_ARCH_LIST=7.5 python -m mask2former.ops.build")


@pytest.mark.parametrize("loads", [False, True])
def test_dtypes_of_the_devices(monkeypatch: pytest.MonkeyPatch, loads: bool) -> None:
    monkeypatch.setattr(_library, "load_library", lambda: True)
    monkeypatch.setattr(_library, "load_cuda_library", lambda device: loads and device == 1)

    def has_native_kernel(device: str, dtype: torch.dtype) -> bool:
        return _library.has_native_kernel(SimpleNamespace(device=torch.device(device), dtype=dtype))

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert has_native_kernel("cpu", dtype) == (dtype != torch.float16)
        assert has_native_kernel("cuda:1", dtype) == loads
    assert not has_native_kernel("cuda:1", torch.float64)
    assert not has_native_kernel("mps", torch.float32)


def test_threads_that_come_first_load_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registered = []

    def register() -> None:
        time.sleep(0.1)
        registered.append(threading.current_thread())

    monkeypatch.setenv("MASK2FORMER_OPS", "auto")
    monkeypatch.setattr(_library, "_load", lambda mode: tmp_path)
    monkeypatch.setattr(_library, "register", register)
    monkeypatch.setattr(_library, "_is_loaded", None)
    threads = [threading.Thread(target=_library.load_library) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registered) == 1
