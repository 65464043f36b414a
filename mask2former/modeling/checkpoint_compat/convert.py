"""Checkpoints whose form their names tell: to the names of our models, or of another form."""

from collections.abc import Collection, Container, Mapping

from torch import Tensor

from .backbones import (
    convert_pretrained_backbone,
    convert_swin,
    convert_torchvision_resnet,
    is_resnet,
    is_swin,
    resize_to_fit,
    to_timm_swin,
    to_torchvision_resnet,
)
from .huggingface import from_huggingface, is_huggingface, to_huggingface
from .legacy import upgrade_legacy_names

__all__ = ["FORMATS", "convert_checkpoint", "convert_names", "is_backbone"]

StateDict = dict[str, Tensor]

# Whose names ``convert_names`` writes: of whole models, and of backbones alone.
FORMATS = ("official", "huggingface", "torchvision", "timm", "microsoft")


def convert_checkpoint(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> StateDict:
    """Recognise the form of a checkpoint by its names and convert it to the model's.

    Known are the official release's (with the older names of MaskFormer's time), Hugging Face's
    ``Mask2FormerForUniversalSegmentation``, and pretrained backbones: torchvision's and timm's ResNets, Microsoft's and
    timm's Swin Transformers, timm's models for ``TimmBackbone``. What training with DistributedDataParallel,
    ``torch.compile`` or Lightning put before the names is removed.

    Args:
        state_dict: the checkpoint's tensors.
        target: the model's ``state_dict()``.

    Returns:
        Tensors by the model's names, where they are known. Counters of batch norms that the model does not have, and
        class weights of another number of classes, which are a setting and not learnt, are left out.
    """
    converted = _without_wrappers(state_dict, known=target)
    if is_huggingface(converted):
        converted = from_huggingface(converted)
    elif is_backbone(converted):
        names = {name.removeprefix("backbone.") for name in target if name.startswith("backbone.")}
        converted = {f"backbone.{n}": t for n, t in convert_pretrained_backbone(converted, names).items()}
    upgrade_legacy_names(converted, "sem_seg_head.", known=target)
    converted = resize_to_fit(converted, target)
    return {name: tensor for name, tensor in converted.items() if not _is_superfluous(name, tensor, target)}


def convert_names(state_dict: Mapping[str, Tensor], to: str) -> StateDict:
    """Recognise the form of a checkpoint by its names, and write it with those of another, without a model.

    Args:
        state_dict: of a whole model (official, of any age, or Hugging Face's), or of a ResNet or Swin alone
            (Detectron2's, torchvision's, timm's, Microsoft's), whose classifier is left out.
        to: one of

            - "official": of a whole model, or of a backbone alone, whichever it is; MaskFormer's and Detectron2's too;
            - "huggingface": of ``Mask2FormerForUniversalSegmentation``;
            - "torchvision", "timm": of the model's ResNet;
            - "timm", "microsoft": of the model's Swin Transformer, with the norms of its features (``norm0`` to
              ``norm3``), which classifiers do not have.

    Raises:
        ValueError: the names are unknown, or something has no counterpart there.
    """
    ours = _official_names(state_dict)
    if to == "official":
        return ours
    if to == "huggingface":
        return to_huggingface(ours)
    if not is_backbone(ours):
        ours = {n.removeprefix("backbone."): t for n, t in ours.items() if n.startswith("backbone.")}
    if to in ("torchvision", "timm") and is_resnet(ours):
        return to_torchvision_resnet(ours)
    if to in ("timm", "microsoft") and is_swin(ours):
        return to_timm_swin(ours) if to == "timm" else ours
    kind = "a Swin Transformer" if is_swin(ours) else "a ResNet" if is_resnet(ours) else "neither ResNet nor Swin"
    raise ValueError(f"{to!r} has no names for this backbone, which is {kind}; there are {', '.join(FORMATS)}.")


def is_backbone(names: Collection[str]) -> bool:
    """Whether the names are of a backbone alone, without ``backbone.`` before them."""
    return not is_huggingface(names) and not any(name.startswith(("backbone.", "sem_seg_head.")) for name in names)


def _official_names(state_dict: Mapping[str, Tensor]) -> StateDict:
    state = _without_wrappers(state_dict)
    if is_huggingface(state):
        return from_huggingface(state)
    if not is_backbone(state):
        upgrade_legacy_names(state, "sem_seg_head.")
        return state
    if is_resnet(state):
        return convert_torchvision_resnet(state)
    if is_swin(state):
        return convert_swin(state)
    raise ValueError(
        f"these are the names of no model that is known here, such as {list(state)[:3]}: expected Mask2Former, "
        "MaskFormer, a ResNet or a Swin Transformer."
    )


def _without_wrappers(state_dict: Mapping[str, Tensor], known: Container[str] = ()) -> StateDict:
    """Remove what modules around a model put before or into its names: ``module.``, ``_orig_mod.``, ``model.``, ...

    Args:
        state_dict: of a model inside any others, as those of DistributedDataParallel, ``torch.compile`` and Lightning.
        known: names that the model has, which stay.
    """
    before = {head for head, found, _ in (name.partition("sem_seg_head.") for name in state_dict) if found}
    prefix = before.pop() if len(before) == 1 else "module."
    return {n if n in known else n.removeprefix(prefix).replace("_orig_mod.", ""): t for n, t in state_dict.items()}


def _is_superfluous(name: str, tensor: Tensor, target: Mapping[str, Tensor]) -> bool:
    if name == "criterion.empty_weight":
        return name not in target or target[name].shape != tensor.shape
    return name.endswith(".num_batches_tracked") and name not in target
