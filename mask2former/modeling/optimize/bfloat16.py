"""Computing in bfloat16: which parameters are in it, and whether the processor only pretends to have it."""

import torch
from torch import nn

from ..attention import MultiheadAttention
from ..backbone.swin_layers import WindowAttention

__all__ = ["cpu_has_bfloat16", "store_in_bfloat16"]

# As torch.cpu.get_capabilities() names them: Intel's and AMD's, Intel's matrix units, and ARM's.
_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
# Modules whose own parameters are only multiplied with, or added to, what autocast computes in bfloat16.
_MULTIPLYING = (nn.Conv2d, nn.Linear, MultiheadAttention, WindowAttention)


def store_in_bfloat16(model: nn.Module) -> None:
    """Replace the parameters that autocast would convert for every image, in place; those of norms and queries stay."""
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        path, _, own_name = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, _MULTIPLYING) or "level_embed" in name:
            setattr(module, own_name, nn.Parameter(parameter.detach().bfloat16(), requires_grad=False))


def cpu_has_bfloat16() -> bool:
    """Whether this processor has units for bfloat16. Without them, it is ten to a hundred times as slow as float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _UNITS)
