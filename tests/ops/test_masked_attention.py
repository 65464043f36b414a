"""Masked attention against a softmax in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import exact, make
from other_instructions import run_with_instructions
from torch import Tensor

from mask2former.ops import _library
from mask2former.ops.masked_attention import has_fast_attention, masked_attention

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)

# N, Q, S, heads, channels of a head: fewer queries than are taken together, and keys that blocks divide and do not.
SIZES = [(1, 1, 1, 1, 32), (2, 3, 64, 2, 32), (1, 9, 130, 2, 64), (2, 100, 191, 8, 32)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}  # results reach 4


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", SIZES)
def test_same_as_a_softmax(size: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = make(*size, dtype)
    result = masked_attention(*problem)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact(*problem), rtol=0, atol=TOLERANCE[dtype])


def gradients(function: Callable[..., Tensor], *problem: Any) -> list[Tensor]:
    """Of a weighted sum of a function's result, in the queries, keys and values."""
    inputs = [x.detach().requires_grad_() for x in problem[:3]]
    result = function(*inputs, *problem[3:])
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    return list(torch.autograd.grad(result, inputs, weights.to(result.dtype)))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", SIZES)
def test_gradients(size: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = make(*size, dtype)
    of_ours, expected = gradients(masked_attention, *problem), gradients(exact, *problem)
    for ours, theirs in zip(of_ours, expected, strict=True):
        assert ours.dtype == dtype
        # Sums over the queries, of which a key may have many.
        largest = max(float(theirs.abs().max()), 1.0)
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=TOLERANCE[dtype] * largest)


def test_no_mask_is_everywhere() -> None:
    query, key, value, attend, heads = make(2, 9, 70, 2, 32)
    calls = [(query, key, value, x, heads) for x in (None, torch.ones_like(attend))]
    results = [[masked_attention(*call), *gradients(masked_attention, *call)] for call in calls]
    for without, with_mask in zip(*results, strict=True):
        assert torch.equal(without, with_mask)


def test_bfloat16_is_rounded_once() -> None:
    problem = make(*SIZES[-1], torch.bfloat16)
    assert float((masked_attention(*problem) == exact(*problem).bfloat16()).float().mean()) > 0.99


def test_segments() -> None:
    # Each query looks at a few neighbours alone, so that most blocks of keys are passed over.
    query, key, value, _, heads = make(1, 21, 768, 2, 32)
    attend = torch.zeros(1, 21, 768, dtype=torch.bool)
    for row in range(21):
        attend[0, row, 30 * row : 30 * row + 25] = True
    value[:, 640:] = torch.nan  # where nobody looks
    result = masked_attention(query, key, value, attend, heads)
    expected = exact(query, key, value.nan_to_num(), attend, heads)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=TOLERANCE[torch.float32])
    of_ours = gradients(masked_attention, query, key, value, attend, heads)
    of_exact = gradients(exact, query, key, value.nan_to_num(), attend, heads)
    for ours, theirs in zip(of_ours, of_exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_large_logits() -> None:
    query, key, value, attend, heads = make(1, 5, 200, 1, 32)
    key = key * torch.linspace(0, 300, 200)[:, None]  # the largest logit comes late, again and again
    result = masked_attention(query, key, value, attend, heads)
    torch.testing.assert_close(result.double(), exact(query, key, value, attend, heads), rtol=0, atol=1e-4)


def test_what_is_not_a_number_stays_with_its_query() -> None:
    query, key, value, attend, heads = make(1, 6, 100, 2, 32)
    attend[0, 4] = False
    before = masked_attention(query, key, value, attend, heads)
    assert before[0, 4].isnan().all()
    query[0, 2] = torch.nan
    after = masked_attention(query, key, value, attend, heads)
    assert after[0, [2, 4]].isnan().all()
    others = [0, 1, 3, 5]
    assert torch.equal(after[0, others], before[0, others])
    assert not after[0, others].isnan().any()


def test_who_looks_nowhere_has_no_gradient() -> None:
    query, key, value, attend, heads = make(1, 6, 100, 2, 32)
    attend[0, 4] = False
    inputs = [x.requires_grad_() for x in (query, key, value)]
    of_ours = torch.autograd.grad(masked_attention(*inputs, attend, heads)[0, [0, 1, 2, 3, 5]].sum(), inputs)
    assert not of_ours[0][0, 4].any()
    attend[0, 4] = True
    expected = torch.autograd.grad(exact(*inputs, attend, heads)[0, [0, 1, 2, 3, 5]].sum(), inputs)
    for ours, theirs in zip(of_ours, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_layouts_make_no_difference() -> None:
    query, key, value, attend, heads = make(*SIZES[-1])
    expected = masked_attention(query, key, value, attend, heads)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (query, key, value, attend)]
    assert torch.equal(masked_attention(*turned, heads), expected)
    before = gradients(masked_attention, query, key, value, attend, heads)
    for x, y in zip(gradients(masked_attention, *turned, heads), before, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_threads_make_no_difference(threads: int) -> None:
    problem = make(1, 37, 150, 2, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result, of_ours = masked_attention(*problem), gradients(masked_attention, *problem)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), exact(*problem), rtol=0, atol=TOLERANCE[torch.float32])
    for ours, theirs in zip(of_ours, gradients(exact, *problem), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(0, 3, 5, 2, 32), (1, 0, 5, 2, 32)])
def test_empty(size: tuple[int, ...]) -> None:
    n, q, s, heads, channels = size
    arguments = (torch.zeros(n, q, heads * channels), *2 * [torch.zeros(n, s, heads * channels)])
    result = masked_attention(*arguments, torch.ones(n, q, s, dtype=torch.bool), heads)
    assert result.shape == (n, q, heads * channels)
    for gradient, x in zip(gradients(masked_attention, *arguments, None, heads), arguments, strict=True):
        assert gradient.shape == x.shape
        assert not gradient.any()


@torch.no_grad()
def test_what_it_is_for() -> None:
    query, key, _, attend, heads = make(2, 4, 5, 2, 32)
    assert has_fast_attention(query, key, key, attend, heads)
    assert has_fast_attention(query.bfloat16(), key.bfloat16(), key.bfloat16(), attend, heads)
    assert not has_fast_attention(query.double(), key.double(), key.double(), attend, heads)
    assert not has_fast_attention(query.to("meta"), key.to("meta"), key.to("meta"), attend, heads)
    assert not has_fast_attention(query, key, key, attend.float(), heads)
    assert not has_fast_attention(query, key, key, attend[:1], heads)
    assert not has_fast_attention(query, key, key, attend[:, None], heads)
    assert not has_fast_attention(query, key, key, attend, 4)
    assert has_fast_attention(query, key, key, None, heads)
    with torch.enable_grad():
        assert has_fast_attention(query, key, key, attend, heads)


def test_opcheck() -> None:
    query, key, value, attend, heads = make(2, 3, 70, 2, 32)
    torch.library.opcheck(torch.ops.mask2former.masked_attention.default, (query, key, value, attend, heads))
    inputs = [x.requires_grad_() for x in (query, key, value)]
    torch.library.opcheck(torch.ops.mask2former.masked_attention.default, (*inputs, attend, heads))


def test_wrong_arguments() -> None:
    query, key, value, attend, heads = make(2, 3, 5, 2, 32)
    for wrong in (
        (query.double(), key, value, attend),
        (query, key.bfloat16(), value, attend),
        (query, key, value, attend.int()),
    ):
        with pytest.raises(RuntimeError, match="must be float32 or bfloat16, and attend bool, on the CPU"):
            masked_attention(*wrong, heads)
    for wrong in (
        (query[0], key, value, attend),
        (query[:1], key, value, attend),
        (query, key[..., 1:], value, attend),
        (query, key, value[:, 1:], attend),
        (query, key, value, attend[:, 1:]),
        (query, key, value, attend[..., 1:]),
    ):
        with pytest.raises(RuntimeError, match=r"expected query \(N, Q, C\), key and value \(N, S, C\)"):
            masked_attention(*wrong, heads)
    for many in (4, 2**58, 2**59, 2**63 - 1):
        with pytest.raises(RuntimeError, match=f"a multiple of 32 channels, not 64 in {many} heads"):
            masked_attention(query, key, value, attend, many)
    backward = torch.ops.mask2former.masked_attention_backward
    result, logsumexp = torch.ops.mask2former.masked_attention(query, key, value, attend, heads)
    with pytest.raises(RuntimeError, match=r"expected query \(N, Q, C\)"):
        backward(result[:, 1:], query, key, value, attend, result, logsumexp, heads)
    with pytest.raises(RuntimeError, match=r"expected query \(N, Q, C\)"):
        backward(result, query, key, value, attend, result[:, 1:], logsumexp, heads)
    with pytest.raises(RuntimeError, match=r"float32 \(N, heads, Q\)"):
        backward(result, query, key, value, attend, result, logsumexp[:, 1:], heads)
    with pytest.raises(RuntimeError, match="must be float32 or bfloat16"):
        backward(result.bfloat16(), query, key, value, attend, result, logsumexp, heads)


def test_second_derivatives_are_refused() -> None:
    query, key, value, attend, heads = make(1, 2, 5, 1, 32)
    (grad,) = torch.autograd.grad(
        masked_attention(query.requires_grad_(), key, value, attend, heads).square().sum(), query, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls = [make(*size, dtype) for size in SIZES for dtype in TOLERANCE]
    program = """
for *problem, gradient in calls:
    output, logsumexp = operators.masked_attention(*problem)
    backward = operators.masked_attention_backward(gradient, *problem[:4], output, logsumexp, problem[4])
    results.append((output, *backward))
"""
    weights = [torch.randn(call[0].shape).to(call[0].dtype) for call in calls]
    with_weights = [(*call, x) for call, x in zip(calls, weights, strict=True)]
    all_results: Any = run_with_instructions(capability, program, with_weights, tmp_path)
    for (output, *of_theirs), problem, gradient in zip(all_results, calls, weights, strict=True):
        tolerance = TOLERANCE[output.dtype]
        torch.testing.assert_close(output.double(), exact(*problem), rtol=0, atol=tolerance)
        inputs = [x.requires_grad_() for x in problem[:3]]
        of_ours = torch.autograd.grad(masked_attention(*inputs, *problem[3:]), inputs, gradient)
        for ours, theirs in zip(of_ours, of_theirs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * tolerance * max(float(ours.abs().max()), 1.0))
