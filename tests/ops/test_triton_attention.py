"""Masked attention in Triton: interpreted on the CPU, compiled for GPUs that need not be there, and on one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import exact, make
from deformable import relative_error
from other_process import run_python
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mask2former.modeling.attention import MultiheadAttention
from mask2former.ops import masked_attention as module
from mask2former.ops.masked_attention import has_fast_attention, masked_attention
from tests.fake_gpu import fake_gpu, recorder

pytest.importorskip("triton")

TOLERANCE = {torch.float32: 5e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}

INTERPRET = """
import numpy as np, torch, triton.language as tl
from attention_cases import exact, make
from deformable import relative_error
from triton.runtime import interpreter
from mask2former.ops import triton_attention

# To the interpreter, bfloat16 is an integer of 16 bits, also when it multiplies.
dot = interpreter.InterpreterBuilder.create_dot
def widen(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widen(a), widen(b), *rest)
triton_attention.wrap_triton = lambda kernel: kernel  # PyTorch 2.11 wraps compiled kernels only

torch.manual_seed(0)
attention = torch.ops.mask2former.triton_masked_attention
splits = set()
count = triton_attention._count_splits
triton_attention._count_splits = lambda *x: splits.add(count(*x)) or count(*x)

def check(query, key, value, attend, heads, result=None):
    result = attention(query, key, value, attend, heads) if result is None else result
    assert result.dtype == query.dtype and result.is_contiguous()
    error = relative_error(result, exact(query, key, value, attend, heads))
    assert error < (5e-6 if query.dtype == torch.float32 else 2**-6), (query.shape, key.shape, query.dtype, error)

for size in [(1, 1, 1, 1, 16), (2, 33, 70, 2, 32), (1, 100, 400, 1, 64), (1, 7, 1601, 2, 32), (2, 5, 140, 1, 128)]:
    for dtype in (torch.float32, torch.bfloat16):
        check(*make(*size, dtype))
assert splits == {1, 2, 4, 16}, splits

triton_attention._count_splits = lambda *x: 16  # of 2 blocks: most splits have no key
check(*make(1, 7, 70, 2, 32))
triton_attention._count_splits = count

query, key, value, attend, heads = make(1, 6, 640, 2, 32)
attend[:, :, 60:] = False  # most splits see nothing
attend[0, 2] = False
attend[0, 2, 639] = True  # a single key
attend[0, 3] = torch.arange(640) >= 600  # the last split alone
attend[:, :, 0] |= ~attend.any(-1)
for dtype in (torch.float32, torch.bfloat16):
    check(query.to(dtype), key.to(dtype), value.to(dtype), attend, heads)
check(30 * query, 30 * key, value, attend, heads)  # logits of thousands

attend[0, 4] = False  # nothing at all
for keys in (64, 640):
    result = attention(query, key[:, :keys], value[:, :keys], attend[..., :keys], heads)
    assert result.isnan().all(-1).flatten().tolist() == [i == 4 or (keys == 64 and i in (2, 3)) for i in range(6)]

query, key, value, attend, heads = problem = make(2, 5, 100, 2, 32)
joint = torch.cat([key, value], -1)
turned = joint.transpose(0, 1).contiguous().transpose(0, 1)
apart = torch.stack([key, value], -1)  # channels that do not lie together
for k, v in ((joint[..., :64], joint[..., 64:]), (turned[..., :64], turned[..., 64:]), (apart[..., 0], apart[..., 1])):
    check(*problem, attention(query, k, v, attend.mT.contiguous().mT, heads))

assert attention(query[:, :0], key, value, attend[:, :0], heads).shape == (2, 0, 64)
assert attention(query, key[:, :0], value[:, :0], attend[..., :0], heads).isnan().all()
shapes = "expected query (N, Q, C), key and value (N, S, C) and attend (N, Q, S), not (2, 5, 64)"
types = "expected query, key and value of one type, and attend bool, not torch.float32"
for wrong, message in (
    ((query, key[:1], value, attend, 2), shapes),
    ((query, key, value[:, 1:], attend, 2), shapes),
    ((query, key, value, attend[..., 1:], 2), shapes),
    ((query, key.half(), value, attend, 2), types),
    ((query, key, value, attend.int(), 2), types),
    ((query, key, value, attend, 8), "expected 16, 32, 64 or 128 channels a head, not 64 in 8 heads"),
):
    try:
        attention(*wrong)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
print("done")
"""


def test_interpreted() -> None:
    assert run_python(INTERPRET, TRITON_INTERPRET="1") == "done\n"


COMPILE = """
import subprocess, sys, tempfile, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mask2former.ops import triton_attention

def build(kernel, dtype, sizes, warps, stages):
    names = kernel.arg_names
    signature = {x: "constexpr" if x in sizes else "i32" for x in names}
    tensors = {x: f"*{dtype}" for x in ("query", "key", "value", "output")}
    for name, kind in {**tensors, "attend": "*i1", "sums": "*fp32", "scales": "*fp32"}.items():
        if name in signature:
            signature[name] = kind
    multiples = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(names) if "*" in signature[x] or "stride" in x}
    source = ASTSource(kernel, signature, sizes, multiples)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "STACK:0 " in usage and "LOCAL:0 " in usage, (kernel, dtype, sizes, usage)  # nothing spilled
    return compiled.asm["ptx"]

for dtype, plan in (("bf16", triton_attention.HALF), ("fp32", triton_attention.FLOAT32)):
    for whole, channels, alignment in ((False, 32, 16), (True, 16, 1), (False, 128, 1)):
        sizes = {
            "WHOLE": whole,
            "HEAD_DIM": channels,
            "ALIGNMENT": alignment,
            "QUERIES": plan.queries,
            "KEYS": triton_attention._keys_of_a_block(plan, channels),
            "PRECISION": plan.precision,
        }
        ptx = build(triton_attention._attend_kernel, dtype, sizes, plan.warps, plan.stages)
        assert "cp.async" in ptx
        assert dtype == "fp32" or "mma" in ptx
for splits, channels in ((2, 16), (16, 32), (64, 128)):
    sizes = {"HEAD_DIM": channels, "SPLITS": splits}
    build(triton_attention._combine_kernel, "bf16", sizes, triton_attention._combining_warps(splits, channels), 3)
print("done")
"""


def test_compiles_for_gpus(tmp_path: Path) -> None:
    assert run_python(COMPILE, TRITON_CACHE_DIR=str(tmp_path)) == "done\n"


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import mask2former.modeling
from mask2former.ops import masked_attention
assert not masked_attention._load_triton(0)
print("mask2former.ops.triton_attention" in sys.modules)
"""


def test_triton_need_not_be_there() -> None:
    assert run_python(WITHOUT_TRITON) == "False\n"


@pytest.fixture
def _gpu() -> Iterator[None]:
    with fake_gpu(), FakeTensorMode():
        yield


def operators_of(compiled: Any, *arguments: Any, **options: Any) -> set[str]:
    """Names of the operators in the graphs that PyTorch makes of a function."""
    graphs: list[torch.fx.GraphModule] = []
    result = torch.compile(compiled, backend=recorder(graphs), fullgraph=True, **options)(*arguments)
    assert result.shape == arguments[0].shape
    return {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}


NAME = "mask2former.triton_masked_attention"


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_attention_uses_it(dynamic: bool | None) -> None:
    with torch.device("cuda"):
        attention = MultiheadAttention(64, 2).eval()
        query, key, attend = torch.zeros(2, 5, 64), torch.zeros(2, 70, 64), torch.ones(2, 5, 70, dtype=torch.bool)
    assert attention(query, key, key, attend).shape == query.shape  # by PyTorch's, for nothing is compiled
    names = operators_of(attention, query, key, key, attend, dynamic=dynamic)
    assert NAME in names
    assert "scaled_dot_product_attention" not in str(names)
    assert NAME not in operators_of(attention, query, key, key, None, dynamic=dynamic)


@pytest.mark.usefixtures("_gpu")
def test_one_graph_is_for_all_sizes() -> None:
    with torch.device("cuda"):
        attention, graphs = MultiheadAttention(64, 2).eval(), []
        compiled = torch.compile(attention, backend=recorder(graphs), fullgraph=True, dynamic=True)
        for images, queries, keys in ((2, 5, 70), (2, 100, 6400), (30, 9, 640)):
            query, key = torch.zeros(images, queries, 64), torch.zeros(images, keys, 64)
            assert compiled(query, key, key, torch.ones(images, queries, keys, dtype=torch.bool)).shape == query.shape
    assert len(graphs) == 1


@pytest.mark.usefixtures("_gpu")
def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, attend, heads = (x.to("cuda") if isinstance(x, Tensor) else x for x in make(2, 5, 70, 2, 32))
    assert not has_fast_attention(query, key, value, attend, heads)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert has_fast_attention(query, key, value, attend, heads)
    assert has_fast_attention(query.half(), key.half(), value.half(), attend, heads)
    assert has_fast_attention(query, key, value, attend, 4)
    assert not has_fast_attention(query, key.half(), value, attend, heads)
    assert not has_fast_attention(query.double(), key.double(), value.double(), attend, heads)
    assert not has_fast_attention(query, key, value, attend.float(), heads)
    assert not has_fast_attention(query, key, value, attend[:1], heads)
    assert not has_fast_attention(query, key[:1], value[:1], attend, heads)
    assert not has_fast_attention(query, key, value, attend[:, None], heads)
    assert not has_fast_attention(query, key, value, attend, 8)  # of 8 channels
    with torch.enable_grad():
        assert not has_fast_attention(query, key, value, attend, heads)
    monkeypatch.setattr(module, "is_exporting", lambda: True)
    assert not has_fast_attention(query, key, value, attend, heads)
    monkeypatch.undo()


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("why", ["an old GPU", "not NVIDIA's", "the user's wish"])
def test_what_it_needs(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "an old GPU":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    elif why == "not NVIDIA's":
        monkeypatch.setattr(torch.version, "cuda", None)
    else:
        monkeypatch.setattr(module, "find_triton", lambda: False)
    assert not module._load_triton(0)


@pytest.mark.usefixtures("_gpu")
def test_torch_knows_the_result() -> None:
    assert module._load_triton(0)
    query, key, value, attend, heads = (x.to("cuda") if isinstance(x, Tensor) else x for x in make(2, 5, 70, 2, 32))
    result = masked_attention(query.half().mT.contiguous().mT, key.half(), value.half(), attend, heads)
    assert (result.shape, result.dtype, result.device.type) == (query.shape, torch.float16, "cuda")
    assert result.is_contiguous()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(problem: tuple[Tensor, Tensor, Tensor, Tensor, int]) -> tuple[Any, ...]:
    return tuple(x.cuda() if isinstance(x, Tensor) else x for x in problem)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_on_a_gpu(dtype: torch.dtype) -> None:
    assert module._load_triton(0)
    for size in [*((1, 100, x, 8, 32) for x in (400, 1600, 6400)), (2, 33, 950, 2, 64), (1, 1, 1, 1, 16)]:
        problem = make(*size, dtype)
        result = masked_attention(*on_gpu(problem))
        assert result.dtype == dtype
        assert relative_error(result.cpu(), exact(*problem)) < TOLERANCE[dtype]


@pytest.mark.gpu
@needs_gpu
def test_nothing_to_look_at_on_a_gpu() -> None:
    assert module._load_triton(0)
    query, key, value, attend, heads = make(1, 5, 640, 2, 32, torch.bfloat16)
    attend[:, :, 70:] = False
    attend[:, :, 0] |= ~attend.any(-1)
    joint = torch.cat([key, value], -1).cuda()
    key, value = joint.chunk(2, dim=-1)  # rows that do not lie together
    result = masked_attention(query.cuda(), key, value, attend.cuda(), heads).cpu()
    assert relative_error(result, exact(query, key.cpu(), value.cpu(), attend, heads)) < TOLERANCE[torch.bfloat16]
    attend[0, 3] = False
    result = masked_attention(query.cuda(), key, value, attend.cuda(), heads).cpu()
    assert result.isnan().all(-1).tolist() == [[False, False, False, True, False]]


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_compiled_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._load_triton(0)
    from mask2former.ops import triton_attention

    function, calls = triton_attention.masked_attention, []

    def watched(query: Tensor, *others: Any) -> Tensor:
        calls.append(query.shape)
        return function(query, *others)

    monkeypatch.setattr(triton_attention, "masked_attention", watched)
    attention = MultiheadAttention(256, 8).eval().cuda()
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True)
    for keys in (400, 950):  # for the second, sizes become symbols
        query, key, value, attend, _ = on_gpu(make(1, 100, keys, 8, 32))
        calls.clear()
        expected = attention(query, key, value, attend)
        assert not calls
        with torch.autocast("cuda", torch.bfloat16):
            result = compiled(query, key, value, attend)
        assert calls
        assert result.dtype == torch.bfloat16
        assert relative_error(result.cpu(), expected.cpu().double()) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@needs_gpu
def test_opcheck_on_a_gpu() -> None:
    assert module._load_triton(0)
    torch.library.opcheck(torch.ops.mask2former.triton_masked_attention.default, on_gpu(make(2, 3, 130, 2, 32)))
