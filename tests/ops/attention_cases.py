"""Problems of masked attention, and their solutions in float64."""

import torch
from torch import Tensor


def make(
    n: int, q: int, s: int, heads: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Queries, keys, values, where a query may look, and the number of heads."""
    query, key, value = (torch.randn(n, length, heads * size).to(dtype) for length in (q, s, s))
    attend = torch.rand(n, q, 1) > torch.rand(n, q, s)  # from nearly nothing to nearly everything
    attend[:, :, 0] |= ~attend.any(dim=-1)
    return query, key, value, attend, heads


def exact(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, heads: int) -> Tensor:
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    weights = logits.masked_fill(~attend[:, None], -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)
