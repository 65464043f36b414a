"""Checkpoints of every published form, to the names of our models.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``; files are read by ``engine.checkpointer``.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .checkpoint_backbones import convert_pretrained_backbone, resize_position_tables
from .checkpoint_huggingface import from_huggingface, is_huggingface, to_huggingface

__all__ = ["convert_checkpoint", "from_huggingface", "to_huggingface", "upgrade_legacy_names"]

StateDict = dict[str, Tensor]

HEAD = "sem_seg_head."


def convert_checkpoint(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> StateDict:
    """Recognise the form of a checkpoint by its names and convert it to the model's.

    Known are the official release's (with the older names of MaskFormer's time), Hugging Face's
    ``Mask2FormerForUniversalSegmentation``, and pretrained backbones: torchvision's and timm's ResNets, Microsoft's and
    timm's Swin Transformers, timm's models for ``TimmBackbone``.

    Args:
        state_dict: the checkpoint's tensors.
        target: the model's ``state_dict()``.

    Returns:
        Tensors by the model's names, where they are known. Counters of batch norms that the model does not have, and
        class weights of another number of classes, which are a setting and not learnt, are left out.
    """
    converted = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if is_huggingface(converted):
        converted = from_huggingface(converted)
    elif not any(name.startswith(("backbone.", HEAD)) for name in converted):
        names = {name.removeprefix("backbone.") for name in target if name.startswith("backbone.")}
        converted = {f"backbone.{n}": t for n, t in convert_pretrained_backbone(converted, names).items()}
    upgrade_legacy_names(converted, HEAD)
    converted = resize_position_tables(converted, target)
    return {name: tensor for name, tensor in converted.items() if not _is_superfluous(name, tensor, target)}


def upgrade_legacy_names(state_dict: MutableMapping[str, Any], prefix: str = HEAD) -> None:
    """Rename, in place, what older checkpoints of the official release call differently; new names stay.

    Before Mask2Former the pixel decoder's parameters were the head's own, and ``query_feat`` was ``static_query``.

    Args:
        state_dict: any.
        prefix: of the segmentation head, with its dot at the end.
    """
    for name in [name for name in state_dict if name.startswith(prefix)]:
        inside = name.removeprefix(prefix)
        if inside.startswith("predictor."):
            inside = inside.replace("static_query.", "query_feat.")
        elif not inside.startswith("pixel_decoder."):
            inside = "pixel_decoder." + inside
        if prefix + inside != name:
            state_dict[prefix + inside] = state_dict.pop(name)


def _is_superfluous(name: str, tensor: Tensor, target: Mapping[str, Tensor]) -> bool:
    if name == "criterion.empty_weight":
        return name not in target or target[name].shape != tensor.shape
    return name.endswith(".num_batches_tracked") and name not in target
