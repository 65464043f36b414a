"""Lets the tests of this folder import what is beside them; and the emulation of CUDA, which a process loads once."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mask2former.ops import _library

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def built_for_gpu() -> None:
    """On a machine with a GPU, tests that skip because nothing is built would show nothing."""
    assert _library.load_library(), "python -m mask2former.ops.build"
    assert _library.load_cuda_library(0), "python -m mask2former.ops.build"


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The operators as ``torch.ops.mask2former_emulation``: four lanes, four atomic additions at once, as on Hopper."""
    from emulated import compile_emulation  # which is beside this file

    library = compile_emulation(tmp_path_factory.mktemp("emulation"), "-DMASK2FORMER_VECTOR_ATOMICS=1")
    torch.ops.load_library(library)
    return ctypes.CDLL(str(library))


@pytest.fixture
def backwards(emulation: ctypes.CDLL) -> Iterator[Callable[[], object]]:
    """Runs the blocks in the other order from the first call on, until the test ends."""
    yield lambda: emulation.emulation_backwards(1)
    emulation.emulation_backwards(0)
