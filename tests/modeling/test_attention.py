"""Attention against PyTorch's own and against a loop over queries."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.attention import MultiheadAttention
from mask2former.ops import _library


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def naive_attention(
    attention: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None
) -> Tensor:
    """One image, (Q, C) and (S, C): a query, and a head of it, at a time, over the keys that it may see."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    size = query.shape[-1] // attention.num_heads
    rows = []
    for index in range(len(query)):
        seen = torch.arange(len(key)) if attend is None else attend[index].nonzero().flatten()
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * size, (head + 1) * size)
            shares = (k[seen, part] @ q[index, part] / size**0.5).exp()
            heads.append((shares / shares.sum()) @ v[seen, part])
        rows.append(attention.out_proj(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_a_loop_over_queries(num_heads: int, masked: bool) -> None:
    attention = MultiheadAttention(8, num_heads)
    randomise(attention)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    attend = torch.rand(2, 3, 5) > 0.5 if masked else None
    if attend is not None:
        attend[:, :, 0] |= ~attend.any(-1)
    actual = attention(query, key, value, attend)
    for image in range(2):
        mask = None if attend is None else attend[image]
        expected = naive_attention(attention, query[image], key[image], value[image], mask)
        torch.testing.assert_close(actual[image], expected, atol=1e-5, rtol=1e-4)


def test_parameters_are_those_of_pytorch() -> None:
    theirs, ours = nn.MultiheadAttention(8, 2, batch_first=True), MultiheadAttention(8, 2)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    attend = torch.rand(2, 3, 5) > 0.3
    attend[:, :, 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~attend.repeat_interleave(2, dim=0))
    torch.testing.assert_close(ours(query, key, value, attend), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not _library.load_library(), reason="the native library is not built")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_attention(dtype: torch.dtype, together: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = MultiheadAttention(64, 2).to(dtype)
    randomise(attention.out_proj)
    query, key, value = (torch.randn(2, length, 64, dtype=dtype, requires_grad=True) for length in (3, 70, 70))
    key = query if together else key
    value = value[:, : key.shape[1]]
    attend = torch.rand(2, 3, key.shape[1]) > 0.7
    attend[:, :, 0] = True
    weights = torch.randn(2, 3, 64, dtype=dtype)

    def run() -> list[Tensor]:
        """The result, and gradients of all that goes in."""
        result = attention(query, key, value, attend if masked else None)
        return [result.detach(), *torch.autograd.grad(result, [query, key, value, *attention.parameters()], weights)]

    with monkeypatch.context() as context:
        context.setattr("mask2former.modeling.attention.has_fast_attention", lambda *_: False)
        expected = run()
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    for actual, of_pytorch in zip(run(), expected, strict=True):
        tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(actual, of_pytorch, rtol=0, atol=tolerance * float(of_pytorch.abs().max()))


@torch.no_grad()
def test_dropout_without_gradients() -> None:
    attention = MultiheadAttention(64, 2, dropout=0.5)
    query, key = torch.randn(1, 3, 64), torch.randn(1, 70, 64)
    attend = torch.ones(1, 3, 70, dtype=torch.bool)
    assert not torch.equal(attention(query, key, key, attend), attention(query, key, key, attend))
    attention.eval()
    assert torch.equal(attention(query, key, key, attend), attention(query, key, key, attend))


def test_no_mask_for_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = F.scaled_dot_product_attention

    def spy(*args: Tensor, attn_mask: Tensor, **options: float) -> Tensor:
        shapes.append(tuple(attn_mask.shape))
        return original(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attend = torch.ones(2, 3, 5, dtype=torch.bool)
    MultiheadAttention(8, 4)(torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8), attend)
    assert shapes == [(2, 1, 3, 5)]


def test_channels_that_the_heads_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"10 channels .* do not divide by 4 heads .*; choose a multiple"):
        MultiheadAttention(10, 4)
