"""Building, finding and loading the native operators."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mask2former.ops import _build as build
from mask2former.ops import _library

load_library = _library._load_library.__wrapped__  # as at the first call

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


def test_builds_a_library_that_needs_only_pytorch(tmp_path: Path) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    older = tmp_path / "libmask2former_ops-0123456789ab.so"
    older.touch()
    path = build.build(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    subprocess.run([sys.executable, "-c", RUN, path], check=True)


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


def test_says_once_how_to_build(nothing_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not load_library()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "is not built; build it with: python -m mask2former.ops.build" in record.getMessage()


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


def test_a_broken_library_falls_back(nothing_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing_built.mkdir(parents=True)
    (nothing_built / build.library_name()).write_text("not a library")
    assert not load_library()
    assert "no native library: " in caplog.records[-1].getMessage()


def test_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS", "fast")
    with pytest.raises(ValueError, match="MASK2FORMER_OPS is 'fast'; set it to one of auto, reference, jit"):
        load_library()
