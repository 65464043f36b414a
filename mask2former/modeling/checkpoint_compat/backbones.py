"""Pretrained ImageNet backbones, with the names that their publishers gave, to the names of ours and back.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``; results have no ``backbone.`` before their names.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "convert_efficientnet_pytorch",
    "convert_pretrained_backbone",
    "convert_swin",
    "convert_timm",
    "convert_torchvision_resnet",
    "is_resnet",
    "is_swin",
    "resize_to_fit",
    "to_timm_swin",
    "to_torchvision_resnet",
]

StateDict = dict[str, Tensor]


def is_resnet(names: Collection[str]) -> bool:
    """Whether the names are of a ResNet: torchvision's, timm's or Detectron2's."""
    return any(name.startswith(("layer1.", "res2.")) for name in names)


def is_swin(names: Collection[str]) -> bool:
    """Whether the names are of a Swin Transformer: Microsoft's, timm's or ours."""
    return any(name.startswith("layers.0.blocks.") for name in names)


def convert_pretrained_backbone(state_dict: Mapping[str, Tensor], target_names: Collection[str]) -> StateDict:
    """Convert an image classifier to the backbone that the target's names belong to; its classifier is left out.

    Args:
        state_dict: of torchvision's, timm's, Microsoft's (Swin) or ``efficientnet_pytorch``'s model.
        target_names: of the backbone's parameters and buffers.
    """
    if "_conv_stem.weight" in state_dict:
        state_dict = convert_efficientnet_pytorch(state_dict)
    if any(name.startswith("body.") for name in target_names):
        return convert_timm(state_dict, target_names)
    if "stem.conv1.weight" in target_names:
        return convert_torchvision_resnet(state_dict)
    if "patch_embed.proj.weight" in target_names:
        return convert_swin(state_dict)
    return dict(state_dict)


def convert_torchvision_resnet(state_dict: Mapping[str, Tensor]) -> StateDict:
    """torchvision's and timm's names of a ResNet to Detectron2's, which stay; the classifier is left out."""
    replacements = [
        (r"^(conv|bn)1\.", r"stem.\g<1>1."),
        *((rf"^layer{i}\.", f"res{i + 1}.") for i in range(1, 5)),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    ]
    kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith(("fc.", "stem.fc."))}
    return {_replace(name, replacements): tensor for name, tensor in kept.items()}


def to_torchvision_resnet(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Detectron2's names of a ResNet to torchvision's and timm's."""
    replacements = [
        (r"^stem\.conv1\.norm\.", "bn1."),
        (r"^stem\.", ""),
        *((rf"^res{i + 1}\.", f"layer{i}.") for i in range(1, 5)),
        (r"\.conv(\d)\.norm\.", r".bn\1."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        (r"\.shortcut\.", ".downsample.0."),
    ]
    return {_replace(name, replacements): tensor for name, tensor in state_dict.items()}


def convert_swin(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Microsoft's and timm's names of a Swin Transformer to ours.

    Left out are the classifier, its norm, and constants (attention masks) that depend on the image's size.
    """
    # timm counts the merging of patches to the stage that it leads to (and had Microsoft's names until 0.8).
    shift = int("layers.0.downsample.reduction.weight" not in state_dict)
    left_out = ("head.", "norm.")
    kept = {n: t for n, t in state_dict.items() if not n.startswith(left_out) and not n.endswith(".attn_mask")}
    return {_move_downsampling(name, -shift): tensor for name, tensor in kept.items()}


def to_timm_swin(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Our names of a Swin Transformer, which are Microsoft's, to timm's, which has no constants of the window size."""
    kept = {name: tensor for name, tensor in state_dict.items() if not name.endswith("relative_position_index")}
    return {_move_downsampling(name, 1): tensor for name, tensor in kept.items()}


def _move_downsampling(name: str, by: int) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + by}.downsample", name)


def _replace(name: str, replacements: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in replacements:
        name = re.sub(pattern, replacement, name)
    return name


def resize_to_fit(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> StateDict:
    """Resizing of what is learnt for each place of a window, an image or a patch, where only the size of that differs.

    Swin's positions are resized bicubically, and the patches of a timm ViT as FlexiViT's (Beyer et al., CVPR 2023,
    Section 3.4), so that the features of a resized image stay the same.

    Args:
        state_dict: with the names of ``target``.
        target: the model's.
    """
    resized = dict(state_dict)
    for name, tensor in state_dict.items():
        shape = target[name].shape if name in target else tensor.shape
        if name.endswith("relative_position_bias_table") and len(tensor) != shape[0]:
            old_side, new_side = (round(rows**0.5) for rows in (len(tensor), shape[0]))  # 2 W - 1
            table = tensor.T.reshape(1, -1, old_side, old_side).float()  # (1, M, 2 W - 1, 2 W - 1)
            table = F.interpolate(table, size=(new_side, new_side), mode="bicubic")
            resized[name] = table.flatten(2)[0].T.to(tensor.dtype)
        elif name.endswith("absolute_pos_embed") and tensor.shape != shape:
            if tensor.dim() == 3:  # a classifier's is flat, (1, HW, C)
                side = round(tensor.shape[1] ** 0.5)
                tensor = tensor.transpose(1, 2).reshape(1, -1, side, side)
            resized[name] = F.interpolate(tensor.float(), size=shape[-2:], mode="bicubic").to(tensor.dtype)
        elif name.endswith("relative_position_index") and tensor.shape != shape:
            resized[name] = target[name]  # a constant of the window size
        elif name.endswith("body.model.patch_embed.proj.weight") and tensor.shape != shape:
            from timm.layers import resample_patch_embed  # there is no such name without timm

            resized[name] = resample_patch_embed(tensor.float(), list(shape[-2:])).to(tensor.dtype)
    return resized


def convert_timm(state_dict: Mapping[str, Tensor], target_names: Collection[str]) -> StateDict:
    """A timm model's names to those of :class:`TimmBackbone`; layers that the backbone does not have are left out.

    Args:
        state_dict: of the whole timm model, or of a feature extractor.
        target_names: of the backbone, ``body.`` first.
    """
    converted = {}
    for name, tensor in state_dict.items():
        # timm's extractors keep the names, flatten the first level ("stages.0" to "stages_0") or wrap the model.
        for candidate in (name, name.replace(".", "_", 1), f"model.{name}"):
            if f"body.{candidate}" in target_names:
                converted[f"body.{candidate}"] = tensor
    return converted


def convert_efficientnet_pytorch(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Names of the ``efficientnet_pytorch`` code (``_blocks.5._bn1.weight``) to timm's (``blocks.3.0.bn2.weight``)."""
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    for index, (stage, block) in _efficientnet_stages(state_dict).items():
        parts = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
        if f"_blocks.{index}._expand_conv.weight" in state_dict:
            parts |= {"_expand_conv": "conv_pw", "_project_conv": "conv_pwl"}
            parts |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
        else:  # the first stage; timm counts its two convolutions from 1
            parts |= {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
        names |= {f"_blocks.{index}.{theirs}": f"blocks.{stage}.{block}.{timm}" for theirs, timm in parts.items()}
    modules = {name: name.rpartition(".") for name in state_dict}
    return {f"{names[module]}.{leaf}": state_dict[name] for name, (module, _, leaf) in modules.items()}


def _efficientnet_stages(state_dict: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """``{index in the flat list: (stage, index in the stage)}``; a stage begins where the output width changes."""
    positions: dict[int, tuple[int, int]] = {}
    stage, block, width = -1, 0, None
    while (weight := state_dict.get(f"_blocks.{len(positions)}._project_conv.weight")) is not None:
        stage, block = (stage, block + 1) if len(weight) == width else (stage + 1, 0)
        positions[len(positions)] = (stage, block)
        width = len(weight)
    return positions
