import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest

from mask2former.modeling.optimize import keep_freed_memory, keep_freed_memory_of_program, memory

glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

# In a process of its own, because it concerns the whole process.
FAULTS = """
import resource, runpy, sys
import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(2**25).fill_(1)  # 128 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
runpy.run_path(sys.argv[1])[sys.argv[2]]()  # without the rest of the package, which takes seconds to import
print(min(faults() for _ in range(4)))  # at first, smaller blocks may find their places between the large ones
"""


@pytest.fixture
def faults() -> Callable[..., tuple[int, int]]:
    """Page faults before and after a function is called."""

    def count(function: str, **environment: str) -> tuple[int, int]:
        command = [sys.executable, "-c", FAULTS, memory.__file__, function]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
        run = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        before, after = map(int, run.stdout.split())
        return before, after

    return count


@glibc
@pytest.mark.parametrize("function", ["keep_freed_memory", "keep_freed_memory_of_program"])
def test_memory_is_had_again_without_page_faults(faults: Callable[..., tuple[int, int]], function: str) -> None:
    before, after = faults(function)
    assert before > 4 * 1000
    assert after < before / 100


@glibc
@pytest.mark.skipif(platform.machine() != "x86_64", reason="PyTorch for ARM has an allocator that keeps memory itself")
def test_a_program_does_what_the_environment_says(faults: Callable[..., tuple[int, int]]) -> None:
    before, after = faults("keep_freed_memory_of_program", MALLOC_TRIM_THRESHOLD_="131072")
    assert after > before / 2


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match=r"no mallopt.* set MODEL.INFERENCE.KEEP_MEMORY to False"):
        keep_freed_memory()


def test_programs_run_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory_of_program()
