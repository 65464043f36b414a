"""Times masked attention on a CPU, and its gradients, against PyTorch's scaled_dot_product_attention.

    python tools/benchmarks/masked_attention.py
    python tools/benchmarks/masked_attention.py --images 1 --threads 4 --json output/masked_attention.json

Masks are discs, as those of segments are nearly. Both take turns in one process; the figures are medians, and their
ratios. Errors are against float64, of the output and of all gradients, relative to the largest number.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import device_name, relative_error, write_json
from torch import Tensor
from torch.nn import functional as F

from mask2former.ops.masked_attention import has_fast_attention, masked_attention

QUERIES, HEADS, CHANNELS = 100, 8, 256
NATIVE, PYTORCH = "native", "PyTorch"
PARTS = ("forward_ms", "with_gradients_ms")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--sides", nargs="*", type=int, default=[16, 32, 64], help="of square maps (default: 16 32 64)")
    parser.add_argument("--rounds", type=int, default=21, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{device_name('cpu')}, torch {torch.__version__}, {arguments.threads} threads\n")
    print(f"{'milliseconds':28}{'forward':>16}{'with gradients':>20}   error")
    results = {}
    for side in arguments.sides:
        for dtype in ("float32", "bfloat16"):
            size = f"{side}x{side}, {dtype}"
            results[size] = compare(make(arguments.images, side), getattr(torch, dtype), arguments.rounds)
            print_size(size, results[size])
    write_json(arguments.json, results)


def print_size(size: str, results: dict[str, dict[str, float]]) -> None:
    """A line for each of the two."""
    for name, figures in results.items():
        cells = [f"{figures[part]:9.2f} {results[PYTORCH][part] / figures[part]:5.1f}x" for part in PARTS]
        print(f"{size + ', ' + name:28}{cells[0]:>16}{cells[1]:>20}   {figures['error']:.0e}")


def make(images: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values, and where a query may look."""
    query, key, value = (torch.randn(images, length, CHANNELS) for length in (QUERIES, side**2, side**2))
    x, y, radius = torch.rand(3, images, QUERIES, 1, 1)
    places = (torch.arange(side) + 0.5) / side
    discs = (places - x) ** 2 + (places[:, None] - y) ** 2 < (0.1 + 0.2 * radius) ** 2
    return query, key, value, discs.flatten(2)


def compare(problem: tuple[Tensor, ...], dtype: torch.dtype, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of both, and their errors."""
    *inputs, attend = problem
    exact = run(attend_by_pytorch, [x.double() for x in inputs], attend)
    query, key, value = inputs = [x.to(dtype) for x in inputs]
    if not has_fast_attention(query, key, value, attend, HEADS):
        raise SystemExit("the native library is not built; build it with: python -m mask2former.ops.build")
    functions: dict[str, Callable[..., Tensor]] = {PYTORCH: attend_by_pytorch, NATIVE: masked_attention}
    seconds: dict[str, list[list[float]]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            run(function, inputs, attend)  # the caches hold the other's data
            begin = time.perf_counter()
            with torch.no_grad():
                function(*inputs, attend, HEADS)
            forward = time.perf_counter()
            run(function, inputs, attend)
            seconds[name].append([forward - begin, time.perf_counter() - forward])
    figures: dict[str, dict[str, float]] = {}
    for name, function in functions.items():
        medians = [1e3 * statistics.median(x) for x in zip(*seconds[name], strict=True)]
        errors = map(relative_error, run(function, inputs, attend), exact)
        figures[name] = {**dict(zip(PARTS, medians, strict=True)), "error": max(errors)}
    return figures


def run(function: Callable[..., Tensor], inputs: list[Tensor], attend: Tensor) -> list[Tensor]:
    """The output, and the gradients of its sum of squares."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves, attend, HEADS)
    return [output.detach(), *torch.autograd.grad(output, leaves, output.detach())]


def attend_by_pytorch(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, heads: int) -> Tensor:
    """Attention of (N, Q, C) and (N, S, C) with one mask (N, Q, S) for all heads."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attend[:, None]).transpose(1, 2).flatten(2)


if __name__ == "__main__":
    main()
