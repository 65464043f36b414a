import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.modeling.optimize import keep_freed_memory

# In a process of its own, because it concerns the whole process.
FAULTS = """
import resource, torch
from mask2former.modeling.optimize import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(2**25).fill_(1)  # 128 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_had_again_without_page_faults(repository: Path) -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], cwd=repository, capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert before > 4 * 1000
    assert after < before / 100


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match=r"no mallopt.* set MODEL.INFERENCE.KEEP_MEMORY to False"):
        keep_freed_memory()
