"""Randomness that depends on where a run is, not on how it got there.

Every iteration and every training sample draws its random numbers from a seed of its own, derived from the run's seed
and its number. Nothing of a random generator's state has to be saved then: a resumed run continues exactly, an
evaluation in between changes nothing, and the samples are the same for any number of workers and processes.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_seed", "isolated_rng", "seed_all"]


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers into one well-spread 32-bit seed."""
    # With their number, because NumPy takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch's CPU, and put them back as they were at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, leaves the GPUs' generators alone
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
