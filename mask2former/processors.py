"""The processors of this computer."""

import os

import torch

__all__ = ["count_usable_cores", "is_nvidia"]


def count_usable_cores() -> int:
    """How many cores this process may use: fewer than there are where Slurm, a container or ``taskset`` says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_nvidia(device: torch.device) -> bool:
    """Whether a device is a GPU of NVIDIA; those of AMD are CUDA devices to PyTorch, too."""
    return device.type == "cuda" and torch.version.cuda is not None
