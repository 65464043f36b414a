"""Masked attention against a softmax in float64."""

from pathlib import Path

import pytest
import torch
from attention_cases import exact, make
from other_instructions import run_with_instructions

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


def test_layouts_make_no_difference() -> None:
    query, key, value, attend, heads = make(*SIZES[-1])
    expected = masked_attention(query, key, value, attend, heads)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (query, key, value, attend)]
    assert torch.equal(masked_attention(*turned, heads), expected)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_threads_make_no_difference(threads: int) -> None:
    problem = make(1, 37, 150, 2, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = masked_attention(*problem)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), exact(*problem), rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("size", [(0, 3, 5, 2, 32), (1, 0, 5, 2, 32)])
def test_empty(size: tuple[int, ...]) -> None:
    n, q, s, heads, channels = size
    arguments = (torch.zeros(n, q, heads * channels), *2 * [torch.zeros(n, s, heads * channels)])
    result = masked_attention(*arguments, torch.ones(n, q, s, dtype=torch.bool), heads)
    assert result.shape == (n, q, heads * channels)


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
    with torch.enable_grad():
        assert not has_fast_attention(query, key, key, attend, heads)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.mask2former.masked_attention.default, make(2, 3, 70, 2, 32))


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
    with pytest.raises(RuntimeError, match="a multiple of 32 channels, not 64 in 4 heads"):
        masked_attention(query, key, value, attend, 4)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str, tmp_path: Path) -> None:
    calls = [make(*size, dtype) for size in SIZES for dtype in TOLERANCE]
    program = "results.extend(operators.masked_attention(*call) for call in calls)"
    for result, problem in zip(run_with_instructions(capability, program, calls, tmp_path), calls, strict=True):
        torch.testing.assert_close(result.double(), exact(*problem), rtol=0, atol=TOLERANCE[result.dtype])
