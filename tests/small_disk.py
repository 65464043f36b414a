"""A disk that is full too soon."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["disk_of"]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Lets no file grow over ``size`` bytes; skips the test on Windows."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
