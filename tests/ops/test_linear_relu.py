"""A linear layer and a ReLU in one call against PyTorch's two."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from mask2former.ops.linear import linear_relu


@pytest.mark.parametrize("bias", [True, False])
def test_on_a_cpu(bias: bool) -> None:
    layer, x = nn.Linear(48, 72, bias=bias), torch.randn(2, 5, 48)
    result = linear_relu(layer, x)
    torch.testing.assert_close(result, F.relu(layer(x)))
    result.sum().backward()
    found = layer.weight.grad.clone()
    layer.zero_grad()
    F.relu(layer(x)).sum().backward()
    torch.testing.assert_close(found, layer.weight.grad)


@torch.no_grad()
def test_hooks_run_in_bfloat16_too() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(5, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    layer.weight_orig.copy_(torch.randn(4, 8))  # the weights follow when the layer is called
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_relu(layer, x), F.relu(layer(x)))


def test_hooks_of_a_backward_pass() -> None:
    layer, gradients = nn.Linear(8, 4), []
    layer.register_full_backward_hook(lambda *arguments: gradients.append(arguments))
    linear_relu(layer, torch.randn(5, 8)).sum().backward()
    assert len(gradients) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_on_a_gpu(dtype: torch.dtype, bias: bool) -> None:
    layer, x = nn.Linear(48, 72, bias=bias).cuda(), torch.randn(2, 5, 48, device="cuda")
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        result, expected = linear_relu(layer, x), F.relu(layer(x))
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)
