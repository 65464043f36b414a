"""The CUDA operators on a GPU: ``make test-gpu``."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from deformable import SHAPES, Shapes, make_fused_inputs, make_inputs, relative_error, run
from torch import Tensor

from mask2former.ops import MSDeformAttn, _library, fused_ms_deform_attn, ms_deform_attn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("built_for_gpu"),
]

OPERATORS = {
    "ms_deform_attn": (ms_deform_attn, make_inputs),
    "fused_ms_deform_attn": (fused_ms_deform_attn, make_fused_inputs),
}
ENCODER: Shapes = [(8, 12), (16, 24), (32, 48)]  # whose queries are the pixels

names = pytest.mark.parametrize("name", OPERATORS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(inputs: tuple[Shapes, list[Tensor]]) -> tuple[Shapes, list[Tensor]]:
    return inputs[0], [x.cuda() for x in inputs[1]]


def check(name: str, inputs: tuple[Shapes, list[Tensor]]) -> None:
    """In half precision output and gradient of the value may be off by their rounding; all else is float32's."""
    shapes, tensors = inputs
    function, value = OPERATORS[name][0], tensors[0]
    queries = tensors[-1].shape[1]
    grad_output = torch.randn(value.shape[0], queries, value.shape[2] * value.shape[3]).to(value.dtype)
    expected = run(function, shapes, [x.double() for x in tensors], grad_output)
    shapes, tensors = on_gpu(inputs)
    assert _library.has_native_kernel(tensors[0])
    actual = [x.cpu() for x in run(function, shapes, tensors, grad_output.cuda())]
    rounding = {torch.float32: 1e-5, torch.float16: 2**-11, torch.bfloat16: 2**-8}[value.dtype]
    tolerances = [rounding] * 2 + [1e-5] * len(tensors[1:])
    for result, exact, tolerance in zip(actual, expected, tolerances, strict=True):
        assert relative_error(result, exact) < tolerance


@names
@dtypes
@pytest.mark.parametrize("head_dim", [1, 2, 7, 16, 32, 40, 100])
def test_channels(name: str, dtype: torch.dtype, head_dim: int) -> None:
    check(name, OPERATORS[name][1](dtype, head_dim=head_dim))


@names
@dtypes
@pytest.mark.parametrize("points", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_numbers_of_samples(name: str, dtype: torch.dtype, points: int, levels: int) -> None:
    check(name, OPERATORS[name][1](dtype, shapes=SHAPES[:levels], points=points))


@names
@dtypes
def test_encoder(name: str, dtype: torch.dtype) -> None:
    check(name, OPERATORS[name][1](dtype, shapes=ENCODER, queries=sum(map(math.prod, ENCODER)), heads=8))


@names
@dtypes
@pytest.mark.usefixtures("_deterministic")
def test_deterministic(name: str, dtype: torch.dtype) -> None:
    function, make = OPERATORS[name]
    for points in (3, 4):
        inputs = make(dtype, shapes=ENCODER, queries=500, points=points)
        check(name, inputs)
        shapes, tensors = on_gpu(inputs)
        first = run(function, shapes, tensors)
        for _ in range(5):
            assert all(map(torch.equal, run(function, shapes, tensors), first))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_reference_points_broadcast(images: int, levels: int) -> None:
    check("fused_ms_deform_attn", make_fused_inputs(reference_images=images, reference_levels=levels))


@names
@pytest.mark.parametrize(("images", "queries", "heads"), [(1, 0, 2), (0, 3, 2), (1, 1, 1), (3, 100, 8)])
def test_sizes(name: str, images: int, queries: int, heads: int) -> None:
    check(name, OPERATORS[name][1](images=images, queries=queries, heads=heads))


def test_not_contiguous_and_not_aligned() -> None:
    shapes, tensors = on_gpu(make_inputs())
    expected = run(ms_deform_attn, shapes, tensors)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in tensors]
    moved = torch.cat([torch.zeros(1, device="cuda"), tensors[0].flatten()])[1:].view(tensors[0].shape)
    for inputs in (strided, [moved, *tensors[1:]]):
        for result, wanted in zip(run(ms_deform_attn, shapes, inputs), expected, strict=True):
            assert relative_error(result, wanted) < 1e-5


@names
@pytest.mark.parametrize("points", [3, 4])
@pytest.mark.filterwarnings("ignore:Input #")  # it would like float64, which the kernels do not have
def test_gradcheck(name: str, points: int) -> None:
    """Numerical gradients in float32, so with large steps: the operator is linear between pixels."""
    function, make = OPERATORS[name]
    torch.manual_seed(0)
    shapes, tensors = on_gpu(make(images=1, queries=2, heads=1, points=points))
    # Half-way between the pixels' centres, where a step does not reach the next ones.
    sizes = torch.tensor([(width, height) for height, width in shapes], device="cuda")[:, None]
    tensors[1] = (
        (torch.rand_like(tensors[1]) * sizes).floor() / sizes if name == "ms_deform_attn" else tensors[1] * 0 + 0.5
    )
    if name == "fused_ms_deform_attn":
        centre = 0.5 * sizes - 0.5  # of the reference points, in pixels from the first pixel's centre
        tensors[2] = tensors[2].round() + 0.5 - (centre - centre.floor())
        tensors[3] = tensors[3] / 5

    def call(*inputs: Tensor) -> Tensor:
        return function(inputs[0], shapes, *inputs[1:])

    constants = {1} if name == "fused_ms_deform_attn" else set()  # the reference points' gradient is PyTorch's work
    leaves = [x.requires_grad_(i not in constants) for i, x in enumerate(tensors)]
    assert torch.autograd.gradcheck(call, leaves, eps=1e-2, atol=5e-3, rtol=5e-3, nondet_tol=1e-4, fast_mode=False)


@names
@dtypes
@pytest.mark.parametrize("points", [3, 4])
def test_opcheck(name: str, dtype: torch.dtype, points: int) -> None:
    shapes, tensors = on_gpu(OPERATORS[name][1](dtype, queries=3, points=points))
    sizes = [size for shape in shapes for size in shape]
    leaves = [x.requires_grad_() for x in tensors]
    torch.library.opcheck(getattr(torch.ops.mask2former, name).default, (leaves[0], sizes, *leaves[1:]))
    constants = [x.detach() for x in tensors]
    arguments = (torch.randn(2, 3, 96, device="cuda").to(dtype), constants[0], sizes, *constants[1:])
    operator = getattr(torch.ops.mask2former, f"{name}_backward").default
    torch.library.opcheck(operator, arguments, {"deterministic": True})  # so that two runs are equal


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_locations_in_float32(dtype: torch.dtype) -> None:
    shapes, tensors = on_gpu(make_fused_inputs(dtype))
    plain = fused_ms_deform_attn(tensors[0], shapes, *tensors[1:])
    sizes = [size for shape in shapes for size in shape]
    with torch.autocast("cuda", dtype):
        assert torch.equal(torch.ops.mask2former.fused_ms_deform_attn(tensors[0], sizes, *tensors[1:]), plain)
        lower = [x.to(dtype) for x in tensors[1:]]
        result = torch.ops.mask2former.fused_ms_deform_attn(tensors[0], sizes, *lower)
    assert torch.equal(result, fused_ms_deform_attn(tensors[0], shapes, *(x.float() for x in lower)))


def test_other_streams_and_graphs() -> None:
    shapes, tensors = on_gpu(make_fused_inputs())
    expected = fused_ms_deform_attn(tensors[0], shapes, *tensors[1:])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # on a stream of its own; work on any other one would be an error
        output = fused_ms_deform_attn(tensors[0], shapes, *tensors[1:])
    output.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


def test_module_compiles_into_one_graph() -> None:
    module = MSDeformAttn(64, num_levels=3, num_heads=2).cuda()
    arguments = (torch.randn(2, 5, 64).cuda(), torch.rand(1, 5, 1, 2).cuda(), torch.randn(2, 48, 64).cuda(), SHAPES)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), module(*arguments), rtol=1e-4, atol=1e-5)


SANITIZED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from deformable import make_fused_inputs, make_inputs, run
from mask_cases import GEOMETRIES, flat, make_masks
from mask2former.ops import fused_ms_deform_attn, ms_deform_attn
from mask2former.ops.masks import make_resizing
for deterministic in (False, True):
    torch.use_deterministic_algorithms(deterministic)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for sizes in ({}, {"points": 3}, {"head_dim": 7}, {"shapes": [(9, 10), (8, 8), (4, 5)], "queries": 174}):
            for function, make in ((ms_deform_attn, make_inputs), (fused_ms_deform_attn, make_fused_inputs)):
                shapes, tensors = make(dtype, **sizes)
                run(function, shapes, [x.cuda() for x in tensors])
for sizes in GEOMETRIES:
    axes = [x.cuda() for x in flat(make_resizing(*sizes))]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        masks = make_masks(sizes[0]).to(dtype).cuda()
        torch.ops.mask2former.resize_masks(masks, *axes, 0, sizes[-1][0], True)
        torch.ops.mask2former.binarise_masks(masks, *axes)
        torch.ops.mask2former.compete_masks(masks, torch.rand(len(masks)).cuda(), *axes)
torch.cuda.synchronize()
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer (it comes with the CUDA toolkit)")
    # PyTorch's allocator would hide what lies beyond the ends of a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [
        sanitizer,
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        "-c",
        SANITIZED,
        str(Path(__file__).parent),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
