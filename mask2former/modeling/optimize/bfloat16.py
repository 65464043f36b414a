"""Whether the processor computes in bfloat16, or only pretends to."""

import torch

__all__ = ["cpu_has_bfloat16"]

# Of torch.cpu.get_capabilities: Intel's and AMD's, Intel's matrix units, and ARM's.
_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


def cpu_has_bfloat16() -> bool:
    """Whether this processor has units for bfloat16. Without them, it is ten to a hundred times as slow as float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _UNITS)
