"""Names of pretrained ImageNet backbones, as their publishers wrote them, to the names of ours.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``; the result has no ``backbone.`` prefix.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

__all__ = ["convert_efficientnet_pytorch", "convert_timm"]

StateDict = dict[str, Tensor]


def convert_timm(state_dict: Mapping[str, Tensor], target_names: Collection[str]) -> StateDict:
    """A timm model's names to those of :class:`TimmBackbone`'s extractor; layers that it does not have are left out.

    Args:
        state_dict: of the whole timm model (classifier included).
        target_names: names of the backbone's parameters and buffers, ``body.`` first.
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
        # Without an expansion (the first stage) everything moves up by one, and the projection is timm's "conv_pw".
        has_expansion = f"_blocks.{index}._expand_conv.weight" in state_dict
        parts = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
        if has_expansion:
            parts |= {
                "_expand_conv": "conv_pw",
                "_project_conv": "conv_pwl",
                "_bn0": "bn1",
                "_bn1": "bn2",
                "_bn2": "bn3",
            }
        else:
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
