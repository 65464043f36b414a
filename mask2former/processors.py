"""The processor cores of this computer."""

import os

__all__ = ["count_usable_cores"]


def count_usable_cores() -> int:
    """How many cores this process may use: fewer than there are where Slurm, a container or ``taskset`` says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
