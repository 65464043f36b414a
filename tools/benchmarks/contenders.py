"""Processes that are timed against one another, each of which answers a line with a line, and whole models for them."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ALLOCATORS",
    "BACKBONES",
    "CLASSES",
    "OURS",
    "QUERIES",
    "THEIRS",
    "Clock",
    "Contender",
    "Marks",
    "add_arguments",
    "device_name",
    "our_config",
    "relative_error",
    "start",
    "their_model",
    "write_json",
]

REPOSITORY = Path(__file__).resolve().parents[2]
OURS, THEIRS = "ours", "transformers"
BACKBONES = {
    "r50": "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "swin_t": "configs/coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
}
CLASSES, QUERIES = 133, 100  # of these configurations
# What the C library does with freed memory; see docs/performance.md.
ALLOCATORS = {"default": {}, "tuned": {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_MAX_": "0"}}


class Contender:
    """A script in a process of its own, so that nothing that it loads or sets concerns the others."""

    def __init__(self, script: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """
        Args:
            script: that reads lines from its standard input, and prints a line for each.
            arguments: its command line.
            environment: variables besides those of this process.
        """
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            # The threads of one contender must not go on spinning while the next one is timed.
            "OMP_WAIT_POLICY": "passive",
            **environment,
        }
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: str) -> str:
        """Send a line, and return the line that is answered."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(request, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} failed; what it says is above.")
        return answer

    def stop(self) -> None:
        """Let it end."""
        self._process.communicate()


def add_arguments(
    parser: argparse.ArgumentParser, contenders: Sequence[str], default: Sequence[str], size: Sequence[int], turn: str
) -> None:
    """Add what benchmarks of whole models have in common.

    Args:
        parser: of the benchmark.
        contenders: that can take part.
        default: those that do.
        size: (height, width) of the images.
        turn: what each does in a round, in the plural.
    """
    parser.add_argument(
        "--contenders",
        nargs="*",
        choices=["all", *contenders],
        default=default,
        metavar="NAME",
        help=f"all (that the processor has units for), or of {contenders} (default: %(default)s)",
    )
    parser.add_argument("--backbone", choices=list(BACKBONES), default="r50", help="(default: %(default)s)")
    parser.add_argument("--size", nargs=2, type=int, default=size, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3, help=f"{turn} of each contender (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each contender (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="default", help="(default: %(default)s)")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, where other programs run too"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--serve", choices=contenders, help=argparse.SUPPRESS)  # the process of a contender


def start(script: str, known: Sequence[str], arguments: argparse.Namespace) -> dict[str, Contender]:
    """Start the contenders that are asked for, each as this script with this command line and ``--serve NAME``."""
    from mask2former.modeling.optimize import cpu_has_bfloat16

    environment = {"OMP_NUM_THREADS": str(arguments.threads), **ALLOCATORS[arguments.allocator]}
    names = known if "all" in arguments.contenders else arguments.contenders
    if "all" in arguments.contenders and arguments.device == "cpu":
        without = ["CUDA graphs"] if cpu_has_bfloat16() else ["CUDA graphs", "bfloat16"]
        print(f"without {' and '.join(without)}, not for this processor; name a contender to time it all the same")
        names = [name for name in names if not any(x in name for x in without)]
    return {name: Contender(script, [*sys.argv[1:], "--serve", name], environment) for name in names}


def device_name(device: str) -> str:
    """The GPU or the processor as it calls itself."""
    from mask2former.inference.benchmark import cpu_name

    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest number."""
    return float((actual.double() - expected).abs().max() / expected.abs().max())


def write_json(file: Path | None, figures: Any) -> None:
    """Write the figures, if a file was asked for."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=2) + "\n")


class Clock:
    """Seconds of the wall, or of this process's "cpu", at the moment at which the device has done its work."""

    def __init__(self, clock: str, device: str) -> None:
        self._device = device
        self._read = time.perf_counter if clock == "wall" else time.process_time

    def __call__(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return self._read()


class Marks:
    """When parts of a turn ended: ``mark(name)`` in it, and the times ``at[name]``."""

    def __init__(self, clock: Clock) -> None:
        self.at: dict[str, float] = {}
        self._clock = clock
        self._silent = False

    def __call__(self, name: str) -> None:
        if not self._silent:
            self.at[name] = self._clock()

    def time_without(self, turn: Callable[[], object]) -> float:
        """Seconds of one more turn, which waits for no mark."""
        self._silent = True
        begin = self._clock()
        turn()
        seconds = self._clock() - begin
        self._silent = False
        return seconds


def our_config(backbone: str, device: str, options: Sequence[str] = ()) -> Any:
    """The official configuration of one of the ``BACKBONES``, without weights."""
    from mask2former.engine import load_config

    given = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", ""]
    return load_config(str(REPOSITORY / BACKBONES[backbone]), [*given, *options])


def their_model(backbone: str) -> Any:
    """The same architecture in transformers, with random weights; none of its paths are dropped in training."""
    transformers = importlib.import_module("transformers")
    stages = [f"stage{i}" for i in range(1, 5)]
    if backbone == "r50":
        encoder = transformers.ResNetConfig(out_features=stages)
    else:
        encoder = transformers.SwinConfig(out_features=stages, drop_path_rate=0.0)
    config = transformers.Mask2FormerConfig(backbone_config=encoder, num_labels=CLASSES, num_queries=QUERIES)
    return transformers.Mask2FormerForUniversalSegmentation(config)
