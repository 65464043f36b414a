"""Fixtures that every test may use."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Facts and images that are not part of the repository; a test that asks for them skips where they are absent."""
    folder = Path(os.environ.get("MASK2FORMER_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set MASK2FORMER_SHARED to where it is)")
    return folder


@pytest.fixture(scope="session")
def contract_dir(shared_dir: Path) -> Path:
    """What the official release computes: parameter names, golden results, resolved configurations."""
    return shared_dir / "contract"
