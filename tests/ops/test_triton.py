"""The Triton kernels, run by Triton's interpreter on the CPU, and compiled for GPUs that need not be there."""

import sys
from pathlib import Path

import pytest
import torch
from deformable import make_fused_inputs, make_inputs, relative_error, run
from other_process import run_python

from mask2former.ops import _library, _triton, fused_ms_deform_attn, ms_deform_attn

pytest.importorskip("triton")


INTERPRET = """
import json, torch
from deformable import make_inputs, relative_error, run
from mask2former.ops import ms_deform_attn, _triton

torch.manual_seed(0)
small = {"shapes": [(7, 5), (3, 4)], "images": 1, "heads": 2, "points": 2, "queries": 5, "head_dim": 8}
for sizes in [{}, {"images": 2, "head_dim": 3}, {"points": 1, "queries": 33, "heads": 1}, {"queries": 0}]:
    for dtype in (torch.float32, torch.bfloat16):
        shapes, tensors = make_inputs(dtype, **{**small, **sizes})
        output = torch.randn(tensors[1].shape[0], tensors[1].shape[1], tensors[0].shape[2] * tensors[0].shape[3])
        expected = run(ms_deform_attn, shapes, [x.double() for x in tensors], output)
        actual = run(_triton.triton_ms_deform_attn, shapes, tensors, output.to(dtype))
        assert [x.dtype for x in actual] == [dtype, dtype, torch.float32, torch.float32]
        rounding = 5e-6 if dtype == torch.float32 else 2**-7
        for name, one, other in zip(("output", "value", "locations", "weights"), actual, expected):
            error = relative_error(one, other)
            assert error < rounding, (sizes, dtype, name, error)

value = torch.full((1, 4, 1, 2), 3.0)  # NaN and infinity are outside
locations = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5])[:, None].expand(1, 1, 1, 1, 4, 2)
output = _triton.triton_ms_deform_attn(value, [(2, 2)], locations, torch.full((1, 1, 1, 1, 4), 0.25))
assert output.tolist() == [[[0.75, 0.75]]], output
print("done")
"""


@pytest.mark.skipif(not _library.load_library(), reason="the native library is not built")
def test_interpreted() -> None:
    assert run_python(INTERPRET, TRITON_INTERPRET="1") == "done\n"


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mask2former.ops import triton_kernels

sizes = {"HEAD_DIM": 32, "LEVELS": 1, "POINTS": 4, "CHANNELS": 32, "QUERIES": 32}
geometry = {"locations": "*fp32", "weights": "*fp32"}
gradients = {"grad_output": "*bf16", "grad_value": "*fp32", "grad_locations": "*fp32", "grad_weights": "*fp32"}
for kernel, tensors in (
    (triton_kernels._forward_kernel, {"value": "*bf16", **geometry, "output": "*bf16"}),
    (triton_kernels._backward_kernel, {"value": "*bf16", **geometry, **gradients}),
):
    numbers = dict.fromkeys(("num_queries", "num_pixels", "num_heads"), "i32")
    signature = {**tensors, "spatial_shapes": ("i32",) * 2, **numbers, **dict.fromkeys(sizes, "constexpr")}
    compiled = triton.compile(ASTSource(kernel, signature, sizes), target=GPUTarget("cuda", 90, 32))
    assert "sm_90" in compiled.asm["ptx"]
    print(len(compiled.asm["cubin"]) > 0)
"""


def test_compiles_for_gpus(tmp_path: Path) -> None:
    assert run_python(COMPILE, TRITON_CACHE_DIR=str(tmp_path)) == "True\n" * 2


def test_torch_knows_the_operators() -> None:
    shapes, (value, locations, weights) = make_inputs()
    sizes = [size for shape in shapes for size in shape]
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x).requires_grad_() for x in (value, locations, weights)]
        output = torch.ops.mask2former.triton_ms_deform_attn(fakes[0], sizes, *fakes[1:])
        assert output.shape == (2, 11, 96)
        gradients = torch.autograd.grad(output.sum(), fakes)
    assert [x.shape for x in gradients] == [x.shape for x in (value, locations, weights)]


def test_launches_on_the_gpu_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the current one, where Triton would launch."""
    from mask2former.ops import triton_kernels

    gpus, launched = [0], []
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda gpu: gpus.append(gpu) or 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", gpus.append)
    for kernel in ("_forward_kernel", "_backward_kernel"):
        grids = {(1, 6): lambda *_, **__: launched.append(gpus[-1])}  # of blocks of queries, and heads of images
        monkeypatch.setattr(triton_kernels, kernel, grids)
    shapes, tensors = make_inputs()
    sizes = [size for shape in shapes for size in shape]
    with torch._subclasses.FakeTensorMode() as mode:
        value, *geometry = (mode.from_tensor(x).to("cuda:1") for x in tensors)
        output = triton_kernels.forward(value, sizes, *geometry)
        triton_kernels.backward(output, value, sizes, *geometry)
    assert launched == [1, 1]
    assert gpus[-1] == 0


def test_only_on_gpus_and_where_any_order_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _triton.has_triton_kernel(torch.ones(1))
    monkeypatch.setenv("MASK2FORMER_OPS", "reference")
    assert not _triton.find_triton.__wrapped__()
    monkeypatch.delenv("MASK2FORMER_OPS")
    assert _triton.find_triton.__wrapped__()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu(dtype: torch.dtype, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    function, make = (fused_ms_deform_attn, make_fused_inputs) if fused else (ms_deform_attn, make_inputs)
    shapes, tensors = make(dtype)
    grad_output = torch.randn(tensors[0].shape[0], tensors[-1].shape[1], tensors[0].shape[2] * tensors[0].shape[3])
    expected = run(function, shapes, [x.double() for x in tensors], grad_output)
    tensors = [x.cuda() for x in tensors]
    monkeypatch.setattr(sys.modules["mask2former.ops.ms_deform_attn"], "has_native_kernel", lambda _: False)
    assert _triton.has_triton_kernel(tensors[0])
    actual = [x.cpu() for x in run(function, shapes, tensors, grad_output.to(dtype).cuda())]
    tolerance = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < tolerance
