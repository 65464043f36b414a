"""Whether what runs is being written down as a graph."""

import torch
from torch import Tensor

__all__ = ["is_exporting", "is_inference_on_gpu", "is_recording"]


def is_recording() -> bool:
    """Whether PyTorch records a graph: ``torch.compile``, ``torch.export``, or a trace for TorchScript and ONNX.

    Sizes are symbols then: nothing may be kept for the next call, or done in as many steps as they say.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result  # found out before the graph: in one, PyTorch 2.11 says that it always exports
def is_exporting() -> bool:
    """Whether the graph is for readers that know nothing of our operators: ``torch.export``, or a trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_inference_on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU, and what reads it is neither differentiated nor exported."""
    return x.is_cuda and not torch.is_grad_enabled() and not is_exporting()
