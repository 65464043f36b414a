import random

import numpy as np
import torch

from mask2former.engine.random_state import derive_seed, isolated_rng, seed_all


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_derived_seeds_are_32_bits_distinct_and_always_the_same():
    seeds = [derive_seed(run, rank, i) for run in range(3) for rank in range(3) for i in range(100)]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)
    assert len({derive_seed(1), derive_seed(1, 0), derive_seed(1, 0, 0)}) == 3


def test_seed_all_repeats_all_three_generators():
    seed_all(3)
    first = draw()
    seed_all(3)

    assert draw() == first


def test_isolated_rng_draws_by_its_seed_and_leaves_no_trace():
    seed_all(1)
    expected_outside = draw()
    seed_all(5)
    expected_inside = draw()

    seed_all(1)
    with isolated_rng(5):
        inside = draw()

    assert inside == expected_inside
    assert draw() == expected_outside


def test_isolated_rng_restores_after_an_error():
    seed_all(1)
    expected = draw()
    seed_all(1)
    try:
        with isolated_rng(5):
            raise KeyError
    except KeyError:
        pass

    assert draw() == expected
