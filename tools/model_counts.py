"""Parameters, floating-point operations and activations of a model, counted without computing.

As in the paper, a multiplication with an addition is one operation. Operators count as in fvcore, with which the
paper's numbers were made; deformable attention and deformable convolution, of which fvcore knows nothing, are counted
too.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchvision  # noqa: F401  registers torchvision::deform_conv2d
from fake_models import run_in_parts
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

__all__ = ["count_activations", "count_operations", "count_parameters"]

# For "total" and each part of the model, the number of each operator.
Counts = dict[str, dict[str, float]]


def count_parameters(model: nn.Module) -> int:
    """Count numbers that are learnt or loaded, buffers aside."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: nn.Module, size: tuple[int, int], as_published: bool = False) -> Counts:
    """Count operations from an image to class logits and mask logits; post-processing has next to none.

    Args:
        model: with values or without; left in inference mode.
        size: height and width of one image, multiples of the model's size divisibility.
        as_published: count the masks of every layer at full size, as predicted in training, unless the layers read
            none though they could (Table 4c). The official release computes them in inference too, and the paper's
            numbers contain them; here masked attention makes its own masks, at its own resolution.

    Returns:
        For "total", "backbone", "pixel_decoder" and "predictor" the operations of each operator.
    """
    head: Any = model.eval().sem_seg_head
    all_masks = as_published and getattr(head.predictor, "reads_masks", True)
    counters = run_in_parts(model, size, _counter, all_masks)
    return _with_total({part: _by_operator(counter) for part, counter in counters.items()})


def count_activations(model: nn.Module, size: tuple[int, int]) -> Counts:
    """Count the numbers that convolutions, matrix products and attention give, as fvcore does.

    Args:
        model, size: see :func:`count_operations`.

    Returns:
        As :func:`count_operations`.
    """
    counters = run_in_parts(model.eval(), size, _ActivationCounter)
    return _with_total({part: dict(counter.counts) for part, counter in counters.items()})


def _with_total(counts: Mapping[str, Mapping[str, float]]) -> Counts:
    names = sorted({name for part in counts.values() for name in part})
    total = {name: sum(part.get(name, 0) for part in counts.values()) for name in names}
    return {"total": total, **{part: dict(by_operator) for part, by_operator in counts.items()}}


class _ActivationCounter(TorchDispatchMode):
    """Counts the outputs of the operators that have floating-point operations of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        if func._overloadpacket in _WITH_ACTIVATIONS:
            first = output if isinstance(output, Tensor) else output[0]
            self.counts[str(func._overloadpacket)] += first.numel()
        return output


# Below, counts are twice the operations, as PyTorch's counter has them: a product and an addition are two.


def _count_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _count_deformable_attention(value: Sequence[int], offsets: Sequence[int], *_: Any, **__: Any) -> int:
    """Each sample is made of four neighbours and weighted: five products a channel."""
    return 2 * 5 * math.prod(offsets[:-1]) * value[-1]


def _count_deformable_convolution(
    images: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """A convolution whose inputs are sampled, by four products, and weighted, by one."""
    out_channels, *taps = weight
    return 2 * out_shape[0] * math.prod(out_shape[2:]) * math.prod(taps) * (out_channels + 5)


def _count_normalisation(images: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * 5 * math.prod(images)


def _count_upsampling(operations: int) -> Callable[..., int]:
    def count(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * operations * math.prod(out_shape)

    return count


# Which PyTorch does not count, or not in 2.11.
_PRODUCTS = {
    torch.ops.mask2former_analysis.deformable_attention: _count_deformable_attention,
    torch.ops.torchvision.deform_conv2d: _count_deformable_convolution,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
}
_COUNTS = {
    **_PRODUCTS,
    # As fvcore counts them.
    torch.ops.aten.native_layer_norm: _count_normalisation,
    torch.ops.aten.native_group_norm: _count_normalisation,
    torch.ops.aten.upsample_nearest2d: _count_upsampling(1),
    torch.ops.aten.upsample_bilinear2d: _count_upsampling(4),
}
_WITH_ACTIVATIONS = {*flop_registry, *_PRODUCTS}


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_COUNTS)


def _by_operator(counter: FlopCounterMode) -> dict[str, float]:
    return {str(operator): count / 2 for operator, count in counter.get_flop_counts().get("Global", {}).items()}
