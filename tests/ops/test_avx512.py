"""The kernels for AVX-512, with 16 lanes, compared with the baseline's on a machine that need not have AVX-512.

The compiler makes the vectors of 16 lanes out of shorter ones here. ``tools/check_avx512.py`` runs the real
instructions.
"""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mask2former.ops import _build

DRIVER = Path(__file__).resolve().parent / "avx512/driver.cpp"
SOURCES = Path(_build.__file__).parent / "csrc"
FLAGS = ["-std=c++17", "-O1", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", f"-I{SOURCES}"]
FLAGS += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]  # what C++ does not define ends the program


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparing program."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or ""]
    if not compiler[0]:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("avx512")

    def compile_source(source: Path, *options: str) -> str:
        path = str(folder / f"{source.stem}{''.join(options)}.o")
        subprocess.run([*compiler, *FLAGS, *options, "-c", str(source), "-o", path], check=True)
        return path

    baseline = "-DMASK2FORMER_KERNELS=kernels_baseline"
    sixteen_lanes = ("-DMASK2FORMER_KERNELS=kernels_avx512", "-D__AVX512F__")  # vector.h asks for no more than that
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(compile_source, DRIVER)]
        for options in ((baseline,), sixteen_lanes):
            jobs += [pool.submit(compile_source, SOURCES / name, *options) for name in _build._KERNELS]
        objects = [job.result() for job in jobs]
    subprocess.run([*compiler, *objects, "-o", str(folder / "driver")], check=True)
    return folder / "driver"


def test_sixteen_lanes(driver: Path) -> None:
    result = subprocess.run([driver, "200"], capture_output=True, text=True)
    assert result.returncode in (0, 1), f"ended by signal {-result.returncode}: see FLAGS, or an array's end"
    assert result.stdout.endswith("PASS: 200 problems of each kind\n"), result.stdout + result.stderr
