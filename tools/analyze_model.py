#!/usr/bin/env python
"""Count a model's parameters and floating-point operations, without weights, without data and without computing.

    python tools/analyze_model.py --config-file configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml
    python tools/analyze_model.py --config-file FILE --size 1024 2048 --details

As in the paper, a multiplication with an addition is one operation, and the image has the average size of COCO's at
test time. Operators count as in fvcore, with which the paper's numbers were made; deformable attention and deformable
convolution, of which fvcore knows nothing, are counted too. Tensors have shapes and no values, so that large models
take seconds.
"""

import argparse
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torchvision  # noqa: F401  registers torchvision::deform_conv2d
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mask2former.engine import load_config
from mask2former.modeling.decoder_input import select_decoder_input

# Padded to a multiple of 32, 53 photographs of COCO (shorter side 800, longer at most 1333) have 800 x 1126 pixels on
# average.
COCO_SIZE = (800, 1120)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--size", nargs=2, type=int, default=COCO_SIZE, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--details", action="store_true", help="also list operators, and the parts of the model")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the configuration")
    args = parser.parse_args()
    model = build_without_weights(load_config(args.config_file, args.opts))
    print(f"parameters: {count_parameters(model) / 1e6:.1f} M")
    for as_published, name in ((False, "as it runs"), (True, "as the paper counts")):
        counts = count_operations(model, args.size, as_published=as_published)
        print(f"FLOPs at {args.size[0]} x {args.size[1]}, {name}: {sum(counts['total'].values()) / 1e9:.1f} G")
        if args.details:
            print_details(counts)


def build_without_weights(cfg: CfgNode) -> nn.Module:
    """Build the configured model with parameters that have shapes and no values."""
    with torch.device("meta"):
        model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    # Not meta tensors, because autocast and some operators ask for a device that exists.
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model.to_empty(device="cpu").requires_grad_(False)


def count_parameters(model: nn.Module) -> int:
    """Count numbers that are learnt or loaded, buffers aside."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: nn.Module, size: Sequence[int], as_published: bool = False) -> dict[str, dict[str, float]]:
    """Count operations from an image to class logits and mask logits; post-processing has next to none.

    Args:
        model: a ``MaskFormer``, with values or without; left in inference mode.
        size: height and width of one image, multiples of the model's size divisibility.
        as_published: count the masks of every layer at full size, as predicted in training, for MaskFormer and where
            the layers read masks. The official releases compute them in inference too, and the papers' numbers
            contain them; here masked attention makes its own masks, at its own resolution.

    Returns:
        For "total", "backbone", "pixel_decoder" and "predictor" the operations of each operator.
    """
    backbone: Any = model.eval().backbone
    head: Any = model.sem_seg_head
    counts: dict[str, dict[str, float]] = {}
    # Of the module alone, so that there is no dropout.
    all_masks = as_published and getattr(head.predictor, "reads_masks", True)
    predictor_training = mock.patch.object(head.predictor, "training", all_masks)
    with _mode_of(model), _deformable_attention_as_one_operator(), predictor_training:
        images = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
        with _counter() as counter:
            features = backbone(images)
        counts["backbone"] = _by_operator(counter)
        with _counter() as counter:
            decoded = head.pixel_decoder.forward_features(features)
        counts["pixel_decoder"] = _by_operator(counter)
        with _counter() as counter:
            head.predictor(select_decoder_input(head.transformer_in_feature, features, decoded), decoded[0])
        counts["predictor"] = _by_operator(counter)
    names = sorted({name for part in counts.values() for name in part})
    return counts | {"total": {name: sum(part.get(name, 0) for part in counts.values()) for name in names}}


def _mode_of(model: nn.Module) -> AbstractContextManager[Any]:
    parameter: Any = next(model.parameters())
    while isinstance(parameter, nn.Parameter) and not isinstance(parameter, FakeTensor):
        parameter = parameter.data
    return parameter.fake_mode if isinstance(parameter, FakeTensor) else nullcontext()


def print_details(counts: dict[str, dict[str, float]]) -> None:
    """Print what each operator costs in each part of the model."""
    parts = list(counts)
    print(f"  {'':32}" + "".join(f"{part:>15}" for part in parts))
    for name in sorted(counts["total"], key=lambda name: -counts["total"][name]):
        print(f"  {name:32}" + "".join(f"{counts[part].get(name, 0) / 1e9:13.2f} G" for part in parts))


@torch.library.custom_op("mask2former_analysis::deformable_attention", mutates_args=())
def _deformable_attention(value: Tensor, offsets: Tensor) -> Tensor:
    """Stands in for multi-scale deformable attention: (N, S, M, D) and (N, Q, M, L, P, 2) to (N, Q, M * D)."""
    return value.new_zeros(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


_deformable_attention.register_fake(_deformable_attention._init_fn)


@contextmanager
def _deformable_attention_as_one_operator() -> Iterator[None]:
    def count_only(value: Tensor, shapes: Any, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return torch.ops.mask2former_analysis.deformable_attention(value, offsets)

    module = importlib.import_module("mask2former.ops.ms_deform_attn")
    with mock.patch.object(module, "fused_ms_deform_attn", count_only):
        yield


# Below, counts are twice the operations, as PyTorch's counter has them: a product and an addition are two.


def _count_deformable_attention(value: Sequence[int], offsets: Sequence[int], **_: Any) -> int:
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


_COUNTS = {
    torch.ops.mask2former_analysis.deformable_attention: _count_deformable_attention,
    torch.ops.torchvision.deform_conv2d: _count_deformable_convolution,
    # As fvcore counts them.
    torch.ops.aten.native_layer_norm: _count_normalisation,
    torch.ops.aten.native_group_norm: _count_normalisation,
    torch.ops.aten.upsample_nearest2d: _count_upsampling(1),
    torch.ops.aten.upsample_bilinear2d: _count_upsampling(4),
}


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_COUNTS)


def _by_operator(counter: FlopCounterMode) -> dict[str, float]:
    return {str(operator): count / 2 for operator, count in counter.get_flop_counts().get("Global", {}).items()}


if __name__ == "__main__":
    main()
