"""Run a model whose tensors have shapes and no values, as a whole or part by part: large models take seconds."""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from mask2former.modeling import query_masks

__all__ = ["COCO_SIZE", "build_without_weights", "mode_of", "run_in_parts", "run_model"]

# Padded to a multiple of 32, 53 photographs of COCO (shorter side 800, longer at most 1333) have 800 x 1126 pixels on
# average.
COCO_SIZE = (800, 1120)

Measure = TypeVar("Measure", bound=AbstractContextManager[Any])


def build_without_weights(cfg: CfgNode) -> nn.Module:
    """Build the configured model with parameters that have shapes and no values."""
    with torch.device("meta"):
        model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    # Not meta tensors, because autocast and some operators ask for a device that exists.
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model.to_empty(device="cpu").requires_grad_(False)


def run_model(model: nn.Module, size: tuple[int, int], all_masks: bool = False, in_training: bool = False) -> Any:
    """Run a segmentation model from an image to its head's predictions; post-processing has next to no cost.

    Args:
        model: with values or without.
        size: height and width of one image, multiples of the model's size divisibility.
        all_masks: let the Transformer decoder predict the masks of every layer at full size, as the paper counts.
        in_training: let it predict those of every layer as in training, where the loss computes what it needs of them.
    """
    backbone, head = _backbone_and_head(model)
    predict = getattr(head, "layers", head)  # per-pixel heads have losses inside
    # Of the module alone, so that there is no dropout.
    training = mock.patch.object(head.predictor, "training", True) if all_masks or in_training else nullcontext()
    whole = mock.patch.object(query_masks, "QueryMasks", _whole_masks) if all_masks else nullcontext()
    with mode_of(model), _deformable_attention_as_one_operator(), _products_by_pytorch(), training, whole:
        images = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
        return predict(backbone(images))


def run_in_parts(
    model: nn.Module, size: tuple[int, int], start: Callable[[], Measure], all_masks: bool = False
) -> dict[str, Measure]:
    """Run a model as :func:`run_model` does, each part of it inside a context of its own.

    Args:
        model, size, all_masks: see there.
        start: makes a context.

    Returns:
        The contexts of "backbone", "pixel_decoder" and "predictor", left.
    """
    backbone, head = _backbone_and_head(model)
    found: dict[str, Measure] = {}
    with ExitStack() as stack:
        for part, module, method in (
            ("backbone", backbone, "forward"),
            ("pixel_decoder", head.pixel_decoder, "forward_features"),
            ("predictor", head.predictor, "forward"),
        ):
            measured = partial(_measure, getattr(module, method), part, start, found)
            stack.enter_context(mock.patch.object(module, method, measured))
        run_model(model, size, all_masks)
    return found


def _whole_masks(embeddings: Tensor, features: Tensor) -> Tensor:
    return query_masks.predict_masks(embeddings, features, training=False)


def _measure(
    function: Callable[..., Any], part: str, start: Callable[[], Measure], found: dict[str, Measure], *args: Any
) -> Any:
    found[part] = start()
    with found[part]:
        return function(*args)


def _backbone_and_head(model: Any) -> tuple[Any, Any]:
    return model.backbone, model.sem_seg_head


def mode_of(model: nn.Module) -> AbstractContextManager[Any]:
    """The mode in which tensors without values live that a model's parameters are; nothing for a real model."""
    parameter: Any = next(model.parameters())
    while isinstance(parameter, nn.Parameter) and not isinstance(parameter, FakeTensor):
        parameter = parameter.data
    return parameter.fake_mode if isinstance(parameter, FakeTensor) else nullcontext()


@torch.library.custom_op("mask2former_analysis::deformable_attention", mutates_args=())
def _deformable_attention(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """Stands in for multi-scale deformable attention of (N, S, M, D), (N, Q, M, L, P, 2) and (N, Q, M, L, P)."""
    return value.new_zeros(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # as the compiled operator does


_deformable_attention.register_fake(_deformable_attention._init_fn)
_deformable_attention.register_autograd(
    lambda ctx, _: tuple(map(torch.zeros_like, ctx.saved_tensors)), setup_context=_keep_inputs
)


@contextmanager
def _products_by_pytorch() -> Iterator[None]:
    """By its operators, which are counted."""
    module = importlib.import_module("mask2former.modeling.attention")
    with (
        mock.patch.object(module, "linear", F.linear),
        mock.patch.object(query_masks, "linear", F.linear),
        mock.patch.object(module, "has_fast_attention", return_value=False),
    ):
        yield


@contextmanager
def _deformable_attention_as_one_operator() -> Iterator[None]:
    def stand_in(value: Tensor, shapes: Any, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return torch.ops.mask2former_analysis.deformable_attention(value, offsets, logits)

    module = importlib.import_module("mask2former.ops.ms_deform_attn")
    with mock.patch.object(module, "fused_ms_deform_attn", stand_in):
        yield
