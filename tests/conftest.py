"""Fixtures that every test may use."""

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Undo what a training does to the loggers, which would write into its files and hide lines from other tests."""
    yield
    for logger in map(logging.getLogger, ("detectron2", "fvcore", "mask2former")):
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.handlers.clear()


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


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[torch.Size]]:
    """``calls_of(name)``: a list that gets the shape of the first tensor of every call of a native operator."""

    def watch(name: str) -> list[torch.Size]:
        operator, calls = getattr(torch.ops.mask2former, name), []

        def watched(x: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
            calls.append(x.shape)
            return operator(x, *others, **options)

        monkeypatch.setattr(torch.ops.mask2former, name, watched)
        return calls

    return watch
