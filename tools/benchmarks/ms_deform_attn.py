"""Times multi-scale deformable attention against its PyTorch reference and against torch-ms-deform-attn.

    python tools/benchmarks/ms_deform_attn.py --json output/ms_deform_attn.json
    python tools/benchmarks/ms_deform_attn.py --device cuda

Every contender runs in a process of its own. They take turns, one call each, so that whatever else the machine does
falls on all of them; the figures are medians of the calls, and their ratios. On a GPU a turn is as many calls as fill
a hundredth of a second, timed by the GPU itself. Errors are against float64, of the output and of the value's
gradient, relative to the largest number. The fused operator's times include the softmax and
the locations, which the others are given. torch-ms-deform-attn takes part where it has been installed:

    pip install --no-build-isolation torch-ms-deform-attn
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, relative_error, write_json
from torch import Tensor

Shapes = list[tuple[int, int]]
# images N, heads M, channels per head D, points P, (height, width) of each level
SIZES: dict[str, tuple[int, int, int, int, Shapes]] = {
    "800x1216": (1, 8, 32, 4, [(25, 38), (50, 76), (100, 152)]),
    "512x512, batch 2": (2, 8, 32, 4, [(16, 16), (32, 32), (64, 64)]),
    "256x256, batch 8, small": (8, 4, 16, 4, [(8, 8), (16, 16), (32, 32)]),
}
EXACT, REFERENCE, PACKAGE = "exact", "reference", "torch-ms-deform-attn"
# function of the contender, dtype of the value
CONTENDERS = {
    EXACT: ("standard", "float64"),  # not timed
    REFERENCE: ("standard", "float32"),
    PACKAGE: ("package", "float32"),
    "native": ("standard", "float32"),
    "native, fused": ("fused", "float32"),
    "native, bfloat16": ("standard", "bfloat16"),
    "native, fused, bfloat16": ("fused", "bfloat16"),
    "native, fused, float16": ("fused", "float16"),  # on GPUs only
    "triton": ("triton", "float32"),  # likewise
    "triton, bfloat16": ("triton", "bfloat16"),
}


def main() -> None:
    """Prints a table for every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="calls of every contender (default: %(default)s)")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES), metavar="SIZE")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of a contender
    arguments = parser.parse_args()
    if arguments.contender:
        serve(arguments.contender, arguments.sizes[0], arguments.device)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can use, and there is none")
    if arguments.device == "cuda":
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    else:
        cpu = torch.backends.cpu.get_cpu_capability()
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cpu}")
    results = {size: compare(size, arguments.rounds, arguments.device) for size in arguments.sizes}
    write_json(arguments.json, results)


def contenders_on(device: str) -> list[str]:
    """Those that can take part."""
    return [
        name
        for name, (function, dtype) in CONTENDERS.items()
        if (function != "package" or importlib.util.find_spec("torch_ms_deform_attn"))
        and (device == "cuda" or (dtype != "float16" and function != "triton"))
    ]


def compare(size: str, rounds: int, device: str) -> dict[str, dict[str, Any]]:
    """Times all contenders at one size, and prints a line for each."""
    processes = {name: start(name, size, device) for name in contenders_on(device)}
    with tempfile.TemporaryDirectory() as folder:
        outputs = {}
        for name, process in processes.items():
            process.ask(f"{folder}/outputs.pt")
            outputs[name] = torch.load(f"{folder}/outputs.pt")
    processes.pop(EXACT).stop()
    results: dict[str, dict[str, Any]] = {name: {} for name in processes}
    for direction in ("forward", "backward"):
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(rounds):
            for name, process in processes.items():
                seconds[name].append(float(process.ask(direction)))
        for name in processes:
            results[name][f"{direction}_ms"] = 1e3 * statistics.median(seconds[name])
    for process in processes.values():
        process.stop()
    print(f"\n{size}: {'forward':>17} {'backward':>11}   error   times as fast as")
    for name, result in results.items():
        result["error"] = max(map(relative_error, outputs[name], outputs[EXACT]))
        ratios = [
            f"{other}: {results[other]['forward_ms'] / result['forward_ms']:.1f}x forward, "
            f"{results[other]['backward_ms'] / result['backward_ms']:.1f}x backward"
            for other in (REFERENCE, PACKAGE)
            if other in results and name.startswith(("native", "triton"))
        ]
        times = f"{result['forward_ms']:8.3f} ms {result['backward_ms']:8.3f} ms"
        print(f"{name:24} {times}  {result['error']:.0e}   {'; '.join(ratios)}", flush=True)
    return results


def start(contender: str, size: str, device: str) -> Contender:
    """Starts the process of a contender."""
    operators = "auto" if contender.startswith("native") else "reference"
    arguments = ["--contender", contender, "--sizes", size, "--device", device]
    return Contender(__file__, arguments, {"MASK2FORMER_OPS": operators})


def serve(contender: str, size: str, device: str) -> None:
    """A contender's process: times a call for the lines "forward" and "backward", else saves results to that file."""
    forward, leaves = make_call(contender, size, device)
    output = forward()
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, leaves, grad_output, retain_graph=True)

    for request in map(str.strip, sys.stdin):
        if request not in ("forward", "backward"):
            torch.save([output.detach().cpu(), backward()[0].cpu()], request)
            print("saved", flush=True)
            continue
        with torch.set_grad_enabled(request == "backward"):
            call: Callable[[], object] = forward if request == "forward" else backward
            call()  # the caches hold another process's data
            print(gpu_seconds(call) if device == "cuda" else cpu_seconds(call), flush=True)


def cpu_seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def gpu_seconds(call: Callable[[], object]) -> float:
    """How long the GPU is busy with a call, from many calls in a row."""
    torch.cuda.synchronize()
    calls = max(1, round(0.01 / gpu_seconds_of(call, 1)))
    return gpu_seconds_of(call, calls) / calls


def gpu_seconds_of(call: Callable[[], object], calls: int) -> float:
    """How long so many calls take in all."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def make_call(contender: str, size: str, device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The contender as a function of nothing, and its inputs: an encoder's, whose queries are the pixels."""
    images, heads, head_dim, points, shapes = SIZES[size]
    function, dtype = CONTENDERS[contender]
    torch.manual_seed(0)
    geometry_dtype = torch.float64 if dtype == "float64" else torch.float32
    pixels = sum(height * width for height, width in shapes)
    value = torch.randn(images, pixels, heads, head_dim)
    points_shape = (images, pixels, heads, len(shapes), points)
    offsets = 2 * torch.randn(*points_shape, 2).to(geometry_dtype)  # in pixels
    logits = torch.randn(points_shape).to(geometry_dtype)
    reference_points = torch.cat([pixel_centers(*shape) for shape in shapes])[None, :, None]  # (1, Q, 1, 2)
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    sizes = torch.tensor([(width, height) for height, width in shapes])
    locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]

    # On any device from the same random numbers.
    geometry = [x.to(device) for x in ((offsets, logits) if function == "fused" else (locations, weights))]
    reference_points = reference_points.to(device)
    leaves = [x.requires_grad_() for x in (value.to(device, getattr(torch, dtype)), *geometry)]
    if function == "package":
        package = importlib.import_module("torch_ms_deform_attn").ms_deform_attn
        areas = torch.tensor([0] + [height * width for height, width in shapes[:-1]])
        level_start_index, spatial_shapes = areas.cumsum(0).to(device), torch.tensor(shapes, device=device)
        return lambda: package(leaves[0], spatial_shapes, level_start_index, *leaves[1:]), leaves
    from mask2former.ops import fused_ms_deform_attn, ms_deform_attn
    from mask2former.ops._triton import triton_ms_deform_attn

    if function == "triton":
        return lambda: triton_ms_deform_attn(leaves[0], shapes, *leaves[1:]), leaves
    if function == "fused":
        return lambda: fused_ms_deform_attn(leaves[0], shapes, reference_points, *leaves[1:]), leaves
    return lambda: ms_deform_attn(leaves[0], shapes, *leaves[1:]), leaves


def pixel_centers(height: int, width: int) -> Tensor:
    """(HW, 2) as (x, y) in 0..1."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x / width, y / height], dim=-1).flatten(0, 1)


if __name__ == "__main__":
    main()
