"""Whether what runs is being written down as a graph."""

import torch

__all__ = ["is_recording"]


def is_recording() -> bool:
    """Whether PyTorch records a graph: ``torch.compile``, ``torch.export``, or a trace for TorchScript and ONNX.

    Sizes are symbols then: nothing may be kept for the next call, or done in as many steps as they say.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
