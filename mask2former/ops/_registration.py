"""What PyTorch needs to know about the native operators besides their kernels, and their schemas do not say.

That is what their results look like without running them (for ``torch.compile``), their gradients, and what autocast
means to them. The schemas and kernels are in ``csrc``.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["fake_backward", "fake_forward", "register", "save_inputs"]

# For what torch.library has no function for. Registrations end with the object that made them, so it is kept here.
_REGISTRATIONS = torch.library.Library("mask2former", "FRAGMENT")


def register() -> None:
    """Register all this; once, after the library with the schemas has been loaded."""
    for name, backward in (("ms_deform_attn", _backward), ("fused_ms_deform_attn", _fused_backward)):
        torch.library.register_fake(f"mask2former::{name}", fake_forward)
        torch.library.register_fake(f"mask2former::{name}_backward", fake_backward)
        torch.library.register_autograd(f"mask2former::{name}", backward, setup_context=save_inputs)
        operator = getattr(torch.ops.mask2former, name)
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _REGISTRATIONS.impl(name, functools.partial(_autocast, device, operator), key)
    torch.library.register_fake("mask2former::resize_masks", _resize_masks_fake)
    torch.library.register_fake("mask2former::binarise_masks", _binarise_masks_fake)
    torch.library.register_fake("mask2former::compete_masks", _compete_masks_fake)
    torch.library.register_fake("mask2former::classify_pixels", _classify_pixels_fake)
    torch.library.register_fake("mask2former::masked_attention", _masked_attention_fake)
    torch.library.register_fake("mask2former::masked_attention_backward", _masked_attention_backward_fake)
    torch.library.register_autograd(
        "mask2former::masked_attention", _masked_attention_backward, setup_context=_save_attention
    )
    torch.library.register_fake("mask2former::linear", _linear_fake)
    torch.library.register_fake("mask2former::sample_pixels", _sample_pixels_fake)
    torch.library.register_fake("mask2former::sample_masks", _sample_masks_fake)
    torch.library.register_fake("mask2former::most_uncertain", _most_uncertain_fake)
    torch.library.register_fake("mask2former::winograd_conv2d", _winograd_conv2d_fake)
    torch.library.register_fake("mask2former::winograd_weight_gradient", _winograd_weight_gradient_fake)


# Below, `geometry` is what an operator takes after the value and the spatial shapes: locations (N, Q, M, L, P, 2) and
# weights (N, Q, M, L, P), or the fused operator's reference points, offsets and logits of these shapes.


def fake_forward(value: Tensor, spatial_shapes: list[int], *geometry: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], geometry[-1].shape[1], value.shape[2] * value.shape[3])


def fake_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: list[int], *geometry: Tensor, deterministic: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    offsets, attention = geometry[-2:]
    return value.new_empty(value.shape), offsets.new_empty(offsets.shape), attention.new_empty(attention.shape)


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, *geometry = inputs
    ctx.save_for_backward(value, *geometry)


@once_differentiable
def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *geometry = ctx.saved_tensors
    grad_value, *grad_geometry = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, *geometry, deterministic=torch.are_deterministic_algorithms_enabled()
    )
    return grad_value, None, *grad_geometry


@once_differentiable
def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, *geometry = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.mask2former.fused_ms_deform_attn_backward(
        grad_output,
        value,
        ctx.spatial_shapes,
        reference_points,
        *geometry,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    grad_points = None
    if ctx.needs_input_grad[2]:
        # A reference point moves its query's points of all heads, by the level's size for a whole image.
        sizes = grad_offsets.new_tensor(ctx.spatial_shapes).view(-1, 2).flip(-1)  # (L, 2) as (width, height)
        grad_points = (grad_offsets.sum(dim=(2, 4)) * sizes).sum_to_size(reference_points.shape)
    return grad_value, None, grad_points, grad_offsets, grad_logits


def _autocast(
    device: str, operator: Callable[..., Tensor], value: Tensor, spatial_shapes: list[int], *geometry: Tensor
) -> Tensor:
    """Values stay in the dtype that autocast gave them; all else needs float32's resolution."""
    with torch.autocast(device, enabled=False):
        return operator(value, spatial_shapes, *(x.float() for x in geometry))


# The operators on masks take logits (Q, h, w) and, for rows and columns, where in a mask an output pixel comes from:
# see mask2former.ops.masks.


def _resize_masks_fake(
    logits: Tensor,
    first_row: Tensor,
    row_weights: Tensor,
    first_column: Tensor,
    column_weights: Tensor,
    begin: int,
    end: int,
    sigmoid: bool,
) -> Tensor:
    shape = (logits.shape[0], end - begin, first_column.shape[0])
    return logits.new_empty(shape, dtype=torch.float32)


def _binarise_masks_fake(
    logits: Tensor, first_row: Tensor, row_weights: Tensor, first_column: Tensor, column_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = logits.shape[0]
    masks = logits.new_empty((count, first_row.shape[0], first_column.shape[0]), dtype=torch.bool)
    probabilities, boxes = (logits.new_empty(shape, dtype=torch.float32) for shape in (count, (count, 4)))
    return masks, logits.new_empty(count, dtype=torch.int64), probabilities, boxes


def _compete_masks_fake(
    logits: Tensor,
    scores: Tensor,
    first_row: Tensor,
    row_weights: Tensor,
    first_column: Tensor,
    column_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    size = (first_row.shape[0], first_column.shape[0])
    winner, inside = logits.new_empty(size, dtype=torch.int32), logits.new_empty(size, dtype=torch.bool)
    return winner, inside, logits.new_empty((3, logits.shape[0]), dtype=torch.int64)


def _classify_pixels_fake(probabilities: Tensor, inside: Tensor) -> Tensor:
    return inside.new_empty(inside.shape[1], dtype=torch.int64)


def _masked_attention_fake(
    query: Tensor, key: Tensor, value: Tensor, attend: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    logsumexp = query.new_empty((query.shape[0], num_heads, query.shape[1]), dtype=torch.float32)
    return query.new_empty(query.shape), logsumexp


def _masked_attention_backward_fake(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attend: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


@once_differentiable
def _masked_attention_backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.mask2former.masked_attention_backward(grad_output, *ctx.saved_tensors, ctx.num_heads)
    return *gradients, None, None


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _sample_pixels_fake(pixels: Tensor, points: Tensor) -> Tensor:
    return pixels.new_empty((points.shape[0], pixels.shape[2]))


def _sample_masks_fake(maps: Tensor, indices: Tensor, ids: Tensor, points: Tensor) -> Tensor:
    return points.new_empty((points.shape[0], indices.shape[0], points.shape[2]))


def _most_uncertain_fake(logits: Tensor, candidates: Tensor, chosen: int) -> Tensor:
    return candidates.new_empty((candidates.shape[0], chosen, 2))


def _winograd_conv2d_fake(pixels: Tensor, weight: Tensor, bias: Tensor, *, onednn: bool = False) -> Tensor:
    return pixels.new_empty((*pixels.shape[:3], weight.shape[1]))


def _winograd_weight_gradient_fake(pixels: Tensor, grad_output: Tensor) -> Tensor:
    return pixels.new_empty((36, grad_output.shape[3], pixels.shape[3]))
