"""The native operators against the PyTorch reference."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deformable import SHAPES, Shapes, make_fused_inputs, make_inputs, relative_error, run
from other_instructions import run_with_instructions
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.ops import MSDeformAttn, _library, fused_ms_deform_attn, ms_deform_attn

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)


def check(function: Callable[..., Tensor], inputs: tuple[Shapes, list[Tensor]]) -> None:
    """Compares output and gradients with the reference in float64.

    In bfloat16 the output and the gradient of the value may be off by their rounding; all else is float32's.
    """
    shapes, tensors = inputs
    value = tensors[0]
    assert _library.has_native_kernel(value)
    grad_output = torch.randn(value.shape[0], tensors[1].shape[1], value.shape[2] * value.shape[3]).to(value.dtype)
    actual = run(function, shapes, tensors, grad_output)
    expected = run(function, shapes, [x.double() for x in tensors], grad_output)
    tolerances = [5e-6 if value.dtype == torch.float32 else 2**-8] * 2 + [5e-6] * len(tensors[1:])
    for result, wanted, tolerance in zip(actual, expected, tolerances, strict=True):
        assert relative_error(result, wanted) < tolerance
    assert [x.dtype for x in actual] == [value.dtype] * 2 + [torch.float32] * len(tensors[1:])


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@dtypes
@pytest.mark.parametrize("head_dim", [1, 2, 3, 8, 16, 23, 32, 48, 100])
def test_head_dims(dtype: torch.dtype, head_dim: int) -> None:
    check(ms_deform_attn, make_inputs(dtype, head_dim=head_dim))


@dtypes
@pytest.mark.parametrize("points", [1, 3, 5, 8, 11])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_numbers_of_samples(dtype: torch.dtype, points: int, levels: int) -> None:
    check(ms_deform_attn, make_inputs(dtype, shapes=SHAPES[:levels], points=points, head_dim=16))


@dtypes
@pytest.mark.parametrize("points", [1, 4, 5, 11])
def test_fused(dtype: torch.dtype, points: int) -> None:
    check(fused_ms_deform_attn, make_fused_inputs(dtype, points=points))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_reference_points_broadcast(images: int, levels: int) -> None:
    check(fused_ms_deform_attn, make_fused_inputs(reference_images=images, reference_levels=levels))


@pytest.mark.parametrize(("images", "queries", "heads"), [(1, 0, 2), (0, 3, 2), (1, 1, 1), (3, 100, 8)])
def test_sizes(images: int, queries: int, heads: int) -> None:
    check(ms_deform_attn, make_inputs(images=images, queries=queries, heads=heads, head_dim=16))
    check(fused_ms_deform_attn, make_fused_inputs(images=images, queries=queries, heads=heads, head_dim=16))


def test_encoder_of_a_whole_image() -> None:
    shapes = [(8, 12), (16, 24), (32, 48)]
    check(ms_deform_attn, make_inputs(shapes=shapes, images=1, queries=sum(math.prod(s) for s in shapes), heads=8))


def test_extreme_logits() -> None:
    shapes, tensors = make_fused_inputs()
    tensors[3] = torch.where(torch.rand(tensors[3].shape) < 0.3, -300.0, 300 * torch.randn(tensors[3].shape))
    check(fused_ms_deform_attn, (shapes, tensors))


def test_not_contiguous() -> None:
    shapes, (value, locations, weights) = make_inputs(torch.float32, head_dim=16)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (value, locations, weights)]
    assert not any(x.is_contiguous() for x in strided)
    grad_output = torch.randn(11, 2, 48).transpose(0, 1)
    expected = run(ms_deform_attn, shapes, [value, locations, weights], grad_output.contiguous())
    for actual, wanted in zip(run(ms_deform_attn, shapes, strided, grad_output), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_wrong_location_shows_in_its_query_only(wrong: float) -> None:
    shapes, (value, locations, weights) = make_inputs()
    locations[1, 4, 2, 1, 3, 0] = wrong
    finite = ms_deform_attn(value, shapes, locations, weights).isfinite().unflatten(-1, (3, 32)).all(-1)
    assert finite.sum() >= finite.numel() - 1
    assert finite[1, 4, 2] == math.isinf(wrong)  # infinitely far outside is outside


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
def test_a_logit_that_is_any_nan_shows_in_its_query_only(bits: int) -> None:
    shapes, tensors = make_fused_inputs()
    tensors[3].view(torch.int32)[1, 4, 2, 1, 3] = bits
    finite = fused_ms_deform_attn(tensors[0], shapes, *tensors[1:]).isfinite().unflatten(-1, (3, 32)).all(-1)
    assert not finite[1, 4, 2]
    assert finite.sum() == finite.numel() - 1


def test_autocast_keeps_locations_in_float32() -> None:
    shapes, tensors = make_fused_inputs(torch.bfloat16)
    plain = fused_ms_deform_attn(tensors[0], shapes, *tensors[1:])
    sizes = [size for shape in shapes for size in shape]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.ops.mask2former.fused_ms_deform_attn(tensors[0], sizes, *tensors[1:]), plain)
        lower = [x.bfloat16() for x in tensors[1:]]
        result = torch.ops.mask2former.fused_ms_deform_attn(tensors[0], sizes, *lower)
    assert torch.equal(result, fused_ms_deform_attn(tensors[0], shapes, *(x.float() for x in lower)))


@dtypes
@pytest.mark.parametrize("name", ["ms_deform_attn", "fused_ms_deform_attn"])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    shapes, tensors = (make_fused_inputs if name.startswith("fused") else make_inputs)(dtype, queries=3, head_dim=8)
    sizes = [size for shape in shapes for size in shape]
    leaves = [x.requires_grad_() for x in tensors]
    torch.library.opcheck(getattr(torch.ops.mask2former, name).default, (leaves[0], sizes, *leaves[1:]))
    constants = [x.detach() for x in tensors]
    arguments = (torch.randn(2, 3, 24).to(dtype), constants[0], sizes, *constants[1:])
    torch.library.opcheck(getattr(torch.ops.mask2former, f"{name}_backward").default, arguments)


def test_module_compiles_into_one_graph_with_the_native_operator() -> None:
    module = MSDeformAttn(32, num_levels=3, num_heads=4)
    operators = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    query, value = torch.randn(2, 5, 32), torch.randn(2, 48, 32)
    arguments = (query, torch.rand(1, 5, 1, 2), value, SHAPES)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*arguments), module(*arguments), rtol=1e-5, atol=1e-6)
    assert any("mask2former.fused_ms_deform_attn" in name for name in operators)


def test_export_has_only_pytorch_operators() -> None:
    module = MSDeformAttn(32, num_levels=3, num_heads=4).eval()
    arguments = (torch.randn(2, 5, 32), torch.rand(1, 5, 1, 2), torch.randn(2, 48, 32), SHAPES)
    program = torch.export.export(module, arguments)
    assert not any("mask2former" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*arguments), module(*arguments), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("function", [ms_deform_attn, fused_ms_deform_attn])
def test_the_gradient_is_told_to_be_deterministic(function: Callable[..., Tensor], wanted: bool) -> None:
    """What the CPU's always is; on CUDA it takes other kernels."""
    told = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.namespace == "mask2former" and "backward" in str(operator):
                told.append((kwargs or {}).get("deterministic", False))
            return operator(*args, **(kwargs or {}))

    inputs = (make_inputs if function is ms_deform_attn else make_fused_inputs)()
    torch.use_deterministic_algorithms(wanted)
    try:
        with Recorder():
            run(function, *inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert told == [wanted]


def test_other_dtypes_take_the_reference() -> None:
    for dtype in (torch.float16, torch.float64):
        shapes, tensors = make_inputs(dtype)
        assert not _library.has_native_kernel(tensors[0])
        assert ms_deform_attn(tensors[0], shapes, *tensors[1:]).dtype == dtype


def test_wrong_arguments_of_the_operator() -> None:
    shapes, (value, locations, weights) = make_inputs()
    sizes = [size for shape in shapes for size in shape]
    operator = torch.ops.mask2former.ms_deform_attn
    with pytest.raises(RuntimeError, match="spatial_shapes hold 49 pixels and value 48"):
        operator(value, [*sizes[:-1], 2], locations, weights)
    with pytest.raises(RuntimeError, match="must be float32 or bfloat16"):
        operator(value.double(), sizes, locations, weights)
    with pytest.raises(RuntimeError, match="must be float32"):
        operator(value, sizes, locations.double(), weights)
    with pytest.raises(RuntimeError, match="heights and widths must be from 1"):
        operator(value, [*sizes[:-2], 0, 1], locations, weights)


def test_more_pixels_than_can_be_counted() -> None:
    sizes = 2 * 2**18 * [2**23]  # 2^64 pixels, of which 64 bits say that there are none
    weights = torch.zeros(1, 0, 1, 2**18, 1)
    with pytest.raises(RuntimeError, match=r"spatial_shapes hold \d+ pixels or more, which are too many"):
        torch.ops.mask2former.ms_deform_attn(torch.zeros(1, 0, 1, 8), sizes, torch.zeros(*weights.shape, 2), weights)


OTHER_INSTRUCTIONS = """
for name, grad_output, value, rest in calls:
    results.append(getattr(operators, name)(value, *rest))
    results.extend(getattr(operators, name + "_backward")(grad_output, value, *rest))
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls, expected = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for head_dim in (7, 16, 32):
            for name, make in (("ms_deform_attn", make_inputs), ("fused_ms_deform_attn", make_fused_inputs)):
                shapes, (value, *rest) = make(dtype, head_dim=head_dim, points=6)
                arguments = [[size for shape in shapes for size in shape], *rest]
                grad_output = torch.randn(2, 11, 3 * head_dim).to(dtype)
                calls.append((name, grad_output, value, arguments))
                expected.append(getattr(torch.ops.mask2former, name)(value, *arguments))
                backward = getattr(torch.ops.mask2former, f"{name}_backward")
                expected.extend(backward(grad_output, value, *arguments))
    actual_results = run_with_instructions(capability, OTHER_INSTRUCTIONS, calls, tmp_path)
    for actual, wanted in zip(actual_results, expected, strict=True):
        assert relative_error(actual, wanted) < (5e-6 if wanted.dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize(
    ("function", "make"), [(ms_deform_attn, make_inputs), (fused_ms_deform_attn, make_fused_inputs)]
)
def test_second_derivatives_are_refused(
    function: Callable[..., Tensor], make: Callable[[], tuple[Shapes, list[Tensor]]]
) -> None:
    shapes, (value, *others) = make()
    output = function(value.requires_grad_(), shapes, *others)
    (gradient,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
