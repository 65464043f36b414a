"""Checkpoints of every published form, to the names of our models.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``; files are read by ``mask2former.weights``.
"""

from collections.abc import Mapping

from torch import Tensor

from .checkpoint_backbones import convert_pretrained_backbone, resize_position_tables
from .checkpoint_huggingface import from_huggingface, is_huggingface, to_huggingface
from .checkpoint_legacy import upgrade_legacy_names

__all__ = ["convert_checkpoint", "from_huggingface", "to_huggingface", "upgrade_legacy_names"]

StateDict = dict[str, Tensor]


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
    elif not any(name.startswith(("backbone.", "sem_seg_head.")) for name in converted):
        names = {name.removeprefix("backbone.") for name in target if name.startswith("backbone.")}
        converted = {f"backbone.{n}": t for n, t in convert_pretrained_backbone(converted, names).items()}
    upgrade_legacy_names(converted, "sem_seg_head.", known=target)
    converted = resize_position_tables(converted, target)
    return {name: tensor for name, tensor in converted.items() if not _is_superfluous(name, tensor, target)}


def _is_superfluous(name: str, tensor: Tensor, target: Mapping[str, Tensor]) -> bool:
    if name == "criterion.empty_weight":
        return name not in target or target[name].shape != tensor.shape
    return name.endswith(".num_batches_tracked") and name not in target
