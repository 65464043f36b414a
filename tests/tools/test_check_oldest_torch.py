import subprocess
import zipfile
from pathlib import Path

import check_oldest_torch
import pytest
import torch

from mask2former.ops import _build


def test_sources_that_do_not_compile_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "torch-1.0-none.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch/include/torch/headeronly/version.h", "")
    assert check_oldest_torch.main(["--wheel", str(wheel)]) == 1
    printed = capfd.readouterr()
    assert "winograd.cpp, cuda/ms_deform_attn_cuda.cpp, cuda/masks_cuda.cpp failed" in printed.out
    assert "torch/csrc/stable" in printed.err  # what the compiler misses


def test_this_version_has_all_headers() -> None:
    commands = _build.check_commands(Path(torch.__file__).parent / "include")
    subprocess.run(commands["linear.cpp"], check=True)


def test_the_oldest_version_is_that_of_the_stable_abi() -> None:
    major, minor = (int(number) for number in check_oldest_torch.oldest().split("."))
    assert f"0x{major:02x}{minor:02x}000000000000" in _build._STABLE_ABI
