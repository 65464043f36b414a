"""The native operators with other instructions than the best that this machine has."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask2former.ops import _library
from mask2former.ops._build import library_name

# Without this package, on the inputs in the file that it is given; the results take their place.
_AROUND = """
import sys, torch
torch.ops.load_library(sys.argv[1])
operators = torch.ops.mask2former
calls, results = torch.load(sys.argv[2]), []
{}
torch.save(results, sys.argv[2])
"""


def run_with_instructions(capability: str, program: str, calls: list[Any], folder: Path) -> list[Tensor]:
    """What a program appends to ``results`` for its ``calls``, by ``operators``, in a process of its own.

    Args:
        capability: "default" or "avx2", as in ATEN_CPU_CAPABILITY.
        program: Python.
        calls: what ``torch.save`` can write.
        folder: for a file.
    """
    file = folder / "calls.pt"
    torch.save(calls, file)
    library = Path(_library.__file__).parent / library_name()
    subprocess.run(
        [sys.executable, "-c", _AROUND.format(program), library, file],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        check=True,
    )
    results: list[Tensor] = torch.load(file)
    return results
