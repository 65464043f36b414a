"""How much memory a process may use, and how much a model needs for a picture."""

from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from mask2former.processors import count_usable_cores

__all__ = ["Machine", "count_parameters", "images_that_fit", "this_machine"]

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """What one process may use.

    Attributes:
        gpu: Whether it trains on a GPU.
        memory: Bytes that are free on the GPU, or half of those of the computer, divided among the processes.
        cpus: Cores for each process.
    """

    gpu: bool
    memory: float
    cpus: int


def this_machine(device: str, processes: int) -> Machine:
    """The machine that this runs on.

    Args:
        device: As in ``MODEL.DEVICE``.
        processes: Of the training, on this machine; each has a GPU of its own.
    """
    cpus = max(1, count_usable_cores() // processes)
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(torch.device(device).index or 0)
        return Machine(True, free, cpus)
    return Machine(False, _free_memory() / 2 / processes, cpus)


def count_parameters(cfg: CfgNode) -> int:
    """Of the model that a configuration describes, which is built without memory for them."""
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return sum(parameter.numel() for parameter in model.parameters())


def images_that_fit(machine: Machine, parameters: int, side: int, targets: int, *, amp: bool) -> float:
    """How many square images a training step can take, by a rule of thumb that errs on the safe side.

    What autograd keeps was counted for models of 22 to 216 million parameters (EfficientNet-Lite0, ResNet-50, Swin-T,
    Swin-L) at 256 and 512 pixels: at most 2.5 kB a pixel, 60 bytes more for each million parameters, and 4 MB a target.
    It is taken twice, for gradients on the way back and what the allocator wastes. Half precision saves a third.

    Args:
        machine: Where.
        parameters: Of the model.
        side: Of an image, in pixels.
        targets: In an image.
        amp: Mixed precision.
    """
    fixed = 1.5e9 + 16 * parameters  # libraries; weights, gradients and AdamW's two moments
    an_image = 2 * ((2500 + 60e-6 * parameters) * side * side + 4e6 * targets) * (0.67 if amp else 1.0)
    return max(0.0, 0.9 * machine.memory - fixed) / an_image


def _free_memory() -> float:
    """Bytes that are free, as far as this is known: the machine's, and what a container leaves of them."""
    limits = [float(text) for path in _CGROUP_LIMITS if (text := _read(path)).isdigit()]
    fields = dict(line.split(":") for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" in fields:
        limits.append(float(fields["MemAvailable"].split()[0]) * 1024)
    return min(limits, default=8e9)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
