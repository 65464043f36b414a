"""The CUDA operators' own sources, run on the CPU (cuda_emulation/), against the PyTorch reference.

What this cannot show is what only a GPU has: its compiler's code, its memory, and its speed. test_cuda.py is for that.
"""

import ctypes
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deformable import SHAPES, Shapes, make_fused_inputs, make_inputs, relative_error, run
from emulated import compile_emulation, guarded
from torch import Tensor

from mask2former.ops import fused_ms_deform_attn, ms_deform_attn_reference

OPERATORS = {"ms_deform_attn": make_inputs, "fused_ms_deform_attn": make_fused_inputs}
FAST = {"head_dim": 32, "points": 4, "queries": 3, "heads": 2}  # with three levels: the fast kernels

names = pytest.mark.parametrize("name", OPERATORS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def differentiate(
    name: str, shapes: Shapes, tensors: list[Tensor], grad_output: Tensor, *, deterministic: bool = False
) -> list[Tensor]:
    """Output and gradients of the emulated operator; it has none for the reference points."""
    sizes = [size for shape in shapes for size in shape]
    operators = torch.ops.mask2former_emulation
    output = getattr(operators, name)(tensors[0], sizes, *tensors[1:])
    backward = getattr(operators, f"{name}_backward")
    return [output, *backward(grad_output, tensors[0], sizes, *tensors[1:], deterministic=deterministic)]


def expected(name: str, shapes: Shapes, tensors: list[Tensor], grad_output: Tensor) -> list[Tensor]:
    """The reference's in float64."""
    function = ms_deform_attn_reference if name == "ms_deform_attn" else fused_ms_deform_attn
    results = run(function, shapes, [x.double() for x in tensors], grad_output)
    return results if name == "ms_deform_attn" else [*results[:2], *results[3:]]


def check(name: str, inputs: tuple[Shapes, list[Tensor]]) -> None:
    """In half precision output and gradient of the value may be off by their rounding; all else is float32's."""
    shapes, tensors = inputs
    value = tensors[0]
    queries = tensors[-1].shape[1]
    grad_output = torch.randn(value.shape[0], queries, value.shape[2] * value.shape[3]).to(value.dtype)
    wanted = expected(name, shapes, tensors, grad_output)
    rounding = {torch.float32: 5e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}[value.dtype]
    for deterministic in (False, True):
        results = differentiate(
            name, shapes, [guarded(x) for x in tensors], guarded(grad_output), deterministic=deterministic
        )
        for result, exact, tolerance in zip(results, wanted, [rounding, rounding, 5e-6, 5e-6], strict=True):
            assert relative_error(result, exact) < tolerance
        assert [x.dtype for x in results] == [value.dtype] * 2 + [torch.float32] * 2


@pytest.mark.timeout(1200)  # with the first test, the fixture compiles
@names
@dtypes
@pytest.mark.parametrize("heads", [2, 8])
def test_sizes_of_mask2former(emulation: ctypes.CDLL, name: str, dtype: torch.dtype, heads: int) -> None:
    check(name, OPERATORS[name](dtype, **FAST | {"heads": heads}))


@names
@dtypes
@pytest.mark.parametrize("head_dim", [1, 7, 40])
def test_any_channels(emulation: ctypes.CDLL, name: str, dtype: torch.dtype, head_dim: int) -> None:
    check(name, OPERATORS[name](dtype, head_dim=head_dim, queries=3))


@names
@pytest.mark.parametrize("points", [1, 3, 5, 8])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_any_numbers_of_samples(emulation: ctypes.CDLL, name: str, points: int, levels: int) -> None:
    check(name, OPERATORS[name](shapes=SHAPES[:levels], points=points, queries=3, heads=1))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("points", [3, 4])
def test_reference_points_broadcast(emulation: ctypes.CDLL, images: int, levels: int, points: int) -> None:
    check(
        "fused_ms_deform_attn",
        make_fused_inputs(reference_images=images, reference_levels=levels, queries=3, points=points),
    )


@names
@pytest.mark.parametrize(
    "shapes",
    [[(9, 10), (8, 8), (4, 5)], [(17, 2), (2, 9), (2, 2)], [(17, 2), (1, 9), (1, 1)]],
    ids=["in tiles", "too thin for tiles", "single rows"],
)
def test_queries_that_are_pixels(emulation: ctypes.CDLL, name: str, shapes: Shapes) -> None:
    queries = sum(math.prod(shape) for shape in shapes)
    check(name, OPERATORS[name](shapes=shapes, images=2, queries=queries, heads=1))


# Several heads, because the gradients of a single softmax may be as small as what rounding leaves of them.
@names
@pytest.mark.parametrize(("images", "queries", "heads"), [(1, 0, 2), (0, 3, 2), (1, 1, 5), (1, 70, 1)])
def test_sizes(emulation: ctypes.CDLL, name: str, images: int, queries: int, heads: int) -> None:
    check(name, OPERATORS[name](images=images, queries=queries, heads=heads))


@pytest.mark.parametrize("points", [3, 4])
def test_extreme_logits(emulation: ctypes.CDLL, points: int) -> None:
    shapes, tensors = make_fused_inputs(queries=3, points=points)
    tensors[3] = torch.where(torch.rand(tensors[3].shape) < 0.3, -300.0, 300 * torch.randn(tensors[3].shape))
    check("fused_ms_deform_attn", (shapes, tensors))


def test_memory_that_is_not_aligned(emulation: ctypes.CDLL) -> None:
    shapes, (value, *geometry) = make_inputs(**FAST)
    moved = torch.cat([torch.zeros(1), value.flatten()])[1:].view(value.shape)
    assert moved.data_ptr() % 16
    grad_output = torch.randn(2, 3, 64)
    for result, exact in zip(
        differentiate("ms_deform_attn", shapes, [moved, *geometry], grad_output),
        expected("ms_deform_attn", shapes, [value, *geometry], grad_output),
        strict=True,
    ):
        assert relative_error(result, exact) < 5e-6


@pytest.mark.parametrize("points", [3, 4])
def test_a_wrong_location_shows_in_its_query_only(emulation: ctypes.CDLL, points: int) -> None:
    shapes, tensors = make_inputs(points=points)
    for wrong in (math.nan, math.inf):
        tensors[1][1, 4, 2, 1, 2, 0] = wrong
        output = differentiate("ms_deform_attn", shapes, tensors, torch.zeros(2, 11, 96))[0]
        finite = output.isfinite().unflatten(-1, (3, 32)).all(-1)
        assert finite.sum() >= finite.numel() - 1
        assert finite[1, 4, 2] == math.isinf(wrong)


@names
@dtypes
@pytest.mark.parametrize("points", [3, 4])
def test_deterministic_sums_do_not_depend_on_the_order(
    backwards: Callable[[], object], name: str, dtype: torch.dtype, points: int
) -> None:
    shapes, tensors = OPERATORS[name](dtype, images=1, queries=80, heads=1, points=points)
    grad_output = torch.randn(1, 80, 32).to(dtype)

    def gradients(*, deterministic: bool) -> list[Tensor]:
        return differentiate(name, shapes, tensors, grad_output, deterministic=deterministic)

    first = {deterministic: gradients(deterministic=deterministic) for deterministic in (True, False)}
    backwards()
    assert all(map(torch.equal, gradients(deterministic=True), first[True]))
    if dtype == torch.float32:  # else rounding may hide it
        assert not torch.equal(gradients(deterministic=False)[1], first[False][1])


@names
@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1e4, 1e30])
def test_deterministic_sums_of_any_magnitude(emulation: ctypes.CDLL, name: str, magnitude: float) -> None:
    shapes, tensors = OPERATORS[name](**FAST)
    grad_output = magnitude * torch.randn(2, 3, 64)
    result = differentiate(name, shapes, tensors, grad_output, deterministic=True)[1]
    exact = expected(name, shapes, tensors, grad_output)[1]
    assert relative_error(result / magnitude, exact / magnitude) < 5e-6


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_deterministic_sums_are_nan_if_anything_is_not_finite(emulation: ctypes.CDLL, wrong: float) -> None:
    shapes, tensors = make_inputs(**FAST)
    grad_output = torch.randn(2, 3, 64)
    for tensor in (grad_output, tensors[2]):
        before = tensor.clone()
        tensor.view(-1)[5] = wrong
        assert differentiate("ms_deform_attn", shapes, tensors, grad_output, deterministic=True)[1].isnan().all()
        tensor.copy_(before)
    assert differentiate("ms_deform_attn", shapes, tensors, grad_output, deterministic=True)[1].isfinite().all()
    tensors[1].view(-1)[5] = math.nan  # of a location
    assert differentiate("ms_deform_attn", shapes, tensors, grad_output, deterministic=True)[1].isnan().all()


def test_wrong_arguments(emulation: ctypes.CDLL) -> None:
    shapes, (value, locations, weights) = make_inputs()
    sizes = [size for shape in shapes for size in shape]
    operator = torch.ops.mask2former_emulation.ms_deform_attn
    with pytest.raises(RuntimeError, match="hold more pixels than value, which has 48"):
        operator(value, [*sizes[:-1], 2], locations, weights)
    with pytest.raises(RuntimeError, match="hold 46 pixels and value 48"):
        operator(value, [7, 5, 5, 2, 1, 1], locations, weights)
    with pytest.raises(RuntimeError, match="must be float32, float16 or bfloat16"):
        operator(value.double(), sizes, locations, weights)
    with pytest.raises(RuntimeError, match="must be float32"):
        operator(value, sizes, locations.double(), weights)
    with pytest.raises(RuntimeError, match="heights and widths must be from 1"):
        operator(value, [*sizes[:-2], 0, 1], locations, weights)
    with pytest.raises(RuntimeError, match="disagree in dimension 1"):
        operator(value, sizes, locations, weights[:, 1:])
    many = torch.zeros(1, 1, 1, 65, 1)
    with pytest.raises(RuntimeError, match="at most 64 levels on CUDA, not 65"):
        operator(torch.zeros(1, 65, 1, 1), [1] * 130, torch.zeros(*many.shape, 2), many)
    fused = torch.ops.mask2former_emulation.fused_ms_deform_attn
    with pytest.raises(RuntimeError, match=r"reference_points must be float32 \(1 or N, Q, 1 or L, 2\)"):
        fused(value, sizes, torch.rand(1, 11, 2, 2), locations, weights)
    backward = torch.ops.mask2former_emulation.ms_deform_attn_backward
    with pytest.raises(RuntimeError, match="grad_output must be"):
        backward(torch.zeros(2, 11, 95), value, sizes, locations, weights)


def test_the_emulation_notices_what_a_gpu_does_not_forgive(emulation: ctypes.CDLL) -> None:
    assert emulation.emulation_of_mistakes() == 0b1111


# Runs the operators of the library that it is given, on the inputs in the file that it is given, and saves the results.
OTHER_LANES = """
import sys, torch
torch.ops.load_library(sys.argv[1])
calls, results = torch.load(sys.argv[2]), []
for name, grad_output, value, rest in calls:
    results.append(getattr(torch.ops.mask2former_emulation, name)(value, *rest))
    results.extend(getattr(torch.ops.mask2former_emulation, name + "_backward")(grad_output, value, *rest))
torch.save(results, sys.argv[2])
"""


@pytest.mark.timeout(1200)  # compiling takes some seconds, but it may get little of a machine
def test_another_number_of_lanes(tmp_path: Path) -> None:
    calls, wanted = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for name, make in OPERATORS.items():
            shapes, (value, *rest) = make(dtype, **FAST)
            grad_output = torch.randn(2, 3, 64).to(dtype)
            calls.append((name, grad_output, value, [[size for shape in shapes for size in shape], *rest]))
            wanted.extend(expected(name, shapes, [value, *rest], grad_output))
    file = tmp_path / "calls.pt"
    torch.save(calls, file)
    library = compile_emulation(tmp_path, "-DMASK2FORMER_LANES=2", "-O0")
    subprocess.run([sys.executable, "-c", OTHER_LANES, library, file], check=True)
    for result, exact in zip(torch.load(file), wanted, strict=True):
        assert relative_error(result, exact) < (5e-6 if result.dtype == torch.float32 else 2**-8)
