"""Masked attention (Section 3.2.1 of the paper, equation 2) for GPUs in Triton, which PyTorch brings along.

Importing this needs Triton, and registers the operator. A hundred queries are too few to keep a GPU busy, so the keys
are split, too: a program takes a block of queries of one head of one image, and one split of the keys. It visits these
a block after the other, with a softmax whose largest logit is the largest so far. A second kernel puts the splits
together.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from .masked_attention import GPU_CHANNELS

__all__ = ["masked_attention"]


class Plan(NamedTuple):
    """How the work is shared out.

    Attributes:
        queries: of a program.
        keys: of a block.
        split: keys of a split, at least.
        programs: that splitting the keys aims at. Shapes alone decide, so that graphs need not know the GPU.
        warps: of a program.
        stages: blocks of keys that are on their way at once.
        precision: of products in float32, as ``tl.dot`` calls it.
    """

    queries: int
    keys: int
    split: int
    programs: int
    warps: int
    stages: int
    precision: str = "ieee"


HALF = Plan(queries=64, keys=64, split=64, programs=256, warps=4, stages=2)
FLOAT32 = Plan(queries=32, keys=32, split=64, programs=512, warps=4, stages=2)
_MANY_KEYS = 10_000
_MAX_SPLITS = 64  # a program of the second kernel holds the channels of a head for each of them


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, attend: Tensor, num_heads: int, plan: Plan | None = None
) -> Tensor:
    """:func:`mask2former.ops.masked_attention.masked_attention`.

    Args:
        query: (N, Q, C) float32, float16 or bfloat16.
        key: (N, S, C), of the same type.
        value: (N, S, C), of the same type.
        attend: (N, Q, S) bool, True where a query may look. A query that may look nowhere gets NaN.
        num_heads: which share the channels C; each has 16, 32, 64 or 128.
        plan: for measurements.

    Returns:
        (N, Q, C), contiguous.

    Raises:
        ValueError: if shapes or types are others.
    """
    _check(query, key, value, attend, num_heads)
    if plan is None:
        plan = FLOAT32 if query.dtype == torch.float32 else HALF
    num_images, num_queries, channels = query.shape
    num_keys, head_dim = key.shape[1], channels // num_heads
    output = query.new_empty(num_images, num_queries, channels)
    if output.numel() == 0:
        return output
    query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
    heads = num_images * num_heads
    query_blocks = triton.cdiv(num_queries, plan.queries)
    splits = _count_splits(_known(num_keys, _MANY_KEYS), _known(heads * query_blocks, num_heads), plan)
    # What a split leaves behind, unless it is the only one: the sum of values for each of a head's channels, not yet
    # divided by the sum of weights; the largest logit, and the sum of weights.
    sums = query.new_empty(heads, num_queries, splits, head_dim, dtype=torch.float32)
    scales = query.new_empty(2, heads, num_queries, splits, dtype=torch.float32)
    wrap_triton(_attend_kernel)[(splits, query_blocks, heads)](
        query,
        key,
        value,
        attend.contiguous(),
        output,
        sums,
        scales,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        num_queries,
        num_keys,
        num_heads,
        WHOLE=splits == 1,
        HEAD_DIM=head_dim,
        ALIGNMENT=math.gcd(_known(num_keys, 1), 16),
        QUERIES=plan.queries,
        KEYS=_keys_of_a_block(plan, head_dim),
        PRECISION=plan.precision,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    if splits > 1:
        wrap_triton(_combine_kernel)[(num_queries, heads)](
            sums,
            scales,
            output,
            num_queries,
            num_heads,
            HEAD_DIM=head_dim,
            SPLITS=splits,
            num_warps=_combining_warps(splits, head_dim),
        )
    return output


@triton_op("mask2former::triton_masked_attention", mutates_args=())
def _operator(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, num_heads: int) -> Tensor:
    # Inductor looks into it, and launches the kernels itself.
    return masked_attention(query, key, value, attend, num_heads)


def _check(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, num_heads: int) -> None:
    num_images, num_queries, channels = query.shape
    keys = (num_images, key.shape[1], channels)
    if key.shape != keys or value.shape != keys or attend.shape != (num_images, num_queries, keys[1]):
        raise ValueError(
            "expected query (N, Q, C), key and value (N, S, C) and attend (N, Q, S), not "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)} and {tuple(attend.shape)}."
        )
    if not query.dtype == key.dtype == value.dtype or attend.dtype != torch.bool:
        raise ValueError(
            "expected query, key and value of one type, and attend bool, not "
            f"{query.dtype}, {key.dtype}, {value.dtype} and {attend.dtype}."
        )
    if channels not in [num_heads * x for x in GPU_CHANNELS]:
        raise ValueError(f"expected 16, 32, 64 or 128 channels a head, not {channels} in {num_heads} heads.")


def _known(size: int, otherwise: int) -> int:
    """A size, if it is no symbol: a graph that asks what a symbol is would be for that answer only."""
    return size if isinstance(size, int) else otherwise


def _count_splits(num_keys: int, programs: int, plan: Plan) -> int:
    """A power of 2, so that there are few kernels; where there are too many, some find nothing to do."""
    splits = 1
    while splits < _MAX_SPLITS and splits * programs < plan.programs and 2 * splits * plan.split <= num_keys:
        splits *= 2
    return splits


def _keys_of_a_block(plan: Plan, head_dim: int) -> int:
    return plan.keys if head_dim <= 64 else plan.keys // 2  # more do not fit into registers


def _combining_warps(splits: int, head_dim: int) -> int:
    return max(1, splits * head_dim // 2048)  # of whose numbers a thread has 64


# Triton compiles anew for numbers that are 1 or multiples of 16. These change with the image's size; what matters of
# them is known otherwise.
_ANY_NUMBER = ["num_queries", "num_keys"]


@triton.jit(do_not_specialize=_ANY_NUMBER)
def _attend_kernel(
    query,
    key,
    value,
    attend,
    output,
    sums,
    scales,
    query_image_stride,
    query_stride,
    key_image_stride,
    key_stride,
    value_image_stride,
    value_stride,
    num_queries,
    num_keys,
    num_heads,
    WHOLE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, splits = tl.program_id(0), tl.num_programs(0)
    image = (tl.program_id(2) // num_heads).to(tl.int64)
    head = tl.program_id(2) % num_heads
    num_keys = num_keys // ALIGNMENT * ALIGNMENT  # the same, but as a multiple masks are loaded many at a time
    channel = tl.arange(0, HEAD_DIM)
    row = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    exists = row < num_queries
    blocks = tl.cdiv(num_keys, KEYS)
    begin = (blocks * split // splits) * KEYS
    end = (blocks * (split + 1) // splits) * KEYS
    column = tl.arange(0, KEYS)

    query += image * query_image_stride + head * HEAD_DIM
    key += image * key_image_stride + begin.to(tl.int64) * key_stride + head * HEAD_DIM
    value += image * value_image_stride + begin.to(tl.int64) * value_stride + head * HEAD_DIM
    keys = key + column[:, None] * key_stride + channel[None, :]
    values = value + column[:, None] * value_stride + channel[None, :]
    masks = attend + (image * num_queries + row[:, None]) * num_keys + (begin + column)[None, :]

    q = tl.load(query + row[:, None].to(tl.int64) * query_stride + channel[None, :], mask=exists[:, None], other=0.0)
    scale = 1.4426950408889634 / HEAD_DIM**0.5  # of logits to the base 2, of which the hardware has powers
    total = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    for start in range(begin, end, KEYS):
        inside = start + column < num_keys
        looks = tl.load(masks, mask=exists[:, None] & inside[None, :], other=False)
        k = tl.load(keys, mask=inside[:, None], other=0.0)
        v = tl.load(values, mask=inside[:, None], other=0.0)
        products = tl.where(looks, tl.dot(q, tl.trans(k), input_precision=PRECISION), float("-inf"))
        new = tl.maximum(largest, tl.max(products, axis=1) * scale)
        shift = tl.where(new == float("-inf"), 0.0, new)  # nothing seen so far: infinity less infinity is not a number
        p = tl.exp2(products * scale - shift[:, None])
        decay = tl.exp2(largest - shift)
        weight = weight * decay + tl.sum(p, axis=1)
        total = tl.dot(p.to(v.dtype), v, total * decay[:, None], input_precision=PRECISION)
        largest = new
        keys += KEYS * key_stride
        values += KEYS * value_stride
        masks += KEYS

    if WHOLE:
        result = total / weight[:, None]
        rows = (image * num_queries + row) * num_heads + head
        written = output + rows[:, None] * HEAD_DIM + channel[None, :]
        tl.store(written, result.to(output.dtype.element_ty), mask=exists[:, None])
    else:
        rows = (tl.program_id(2).to(tl.int64) * num_queries + row) * splits + split
        tl.store(sums + rows[:, None] * HEAD_DIM + channel[None, :], total, mask=exists[:, None])
        tl.store(scales + rows, largest, mask=exists)
        weights = scales + tl.num_programs(2).to(tl.int64) * num_queries * splits
        tl.store(weights + rows, weight, mask=exists)


@triton.jit(do_not_specialize=_ANY_NUMBER)
def _combine_kernel(
    sums,
    scales,
    output,
    num_queries,
    num_heads,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    image = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    query = tl.program_id(0)
    channel = tl.arange(0, HEAD_DIM)
    rows = (tl.program_id(1).to(tl.int64) * num_queries + query) * SPLITS + tl.arange(0, SPLITS)
    largest = tl.load(scales + rows)
    weight = tl.load(scales + tl.num_programs(1).to(tl.int64) * num_queries * SPLITS + rows)
    total = tl.load(sums + rows[:, None] * HEAD_DIM + channel[None, :])
    share = tl.exp2(largest - tl.max(largest, axis=0))  # not a number, all of them, where no split saw anything
    result = tl.sum(total * share[:, None], axis=0) / tl.sum(weight * share, axis=0)
    written = output + ((image * num_queries + query) * num_heads + head) * HEAD_DIM + channel
    tl.store(written, result.to(output.dtype.element_ty))
