"""Checkpoints of every published form, to the names of our models.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``; files are read by ``engine.checkpointer``.
"""

from collections.abc import Mapping

from torch import Tensor

from .checkpoint_backbones import convert_efficientnet_pytorch, convert_timm

__all__ = ["convert_checkpoint"]

StateDict = dict[str, Tensor]


def convert_checkpoint(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> StateDict:
    """Recognise the form of a checkpoint by its names and convert it to those of ``target``.

    Args:
        state_dict: the checkpoint's tensors.
        target: the model's ``state_dict()``.
    """
    if "_conv_stem.weight" in state_dict:
        state_dict = convert_efficientnet_pytorch(state_dict)
    backbone = [name.removeprefix("backbone.") for name in target if name.startswith("backbone.")]
    if any(name.startswith("body.") for name in backbone) and not any(n.startswith("backbone.") for n in state_dict):
        state_dict = {f"backbone.{n}": t for n, t in convert_timm(state_dict, set(backbone)).items()}
    return dict(state_dict)
