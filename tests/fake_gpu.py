"""An NVIDIA GPU whose tensors have shapes, and that is all, for what is traced for one by PyTorch's FakeTensorMode."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from mask2former.ops import masked_attention

__all__ = ["fake_gpu", "recorder"]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Without gradients; what PyTorch and this package ask of a GPU is answered as by Hopper."""
    answers = [
        (torch.version, "cuda", "13.0"),
        (torch._C, "_has_cudnn", True),
        (torch.cuda, "get_device_capability", lambda device: (9, 0)),
        # Autocast asks these whether there is a GPU, and whether it has bfloat16.
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
    ]
    with ExitStack() as stack:
        for owner, name, answer in answers:
            stack.enter_context(mock.patch.object(owner, name, answer))
        for forget in (masked_attention._load_triton_once.cache_clear, torch.compiler.reset):
            forget()
            stack.callback(forget)
        stack.enter_context(torch.no_grad())
        yield


def recorder(graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
    """A backend of ``torch.compile`` that appends what it is given, and runs it as it is."""

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend
