"""Weights from one code base's names to another's."""

from pathlib import Path

import torch

from mask2former.modeling.checkpoint_compat import from_huggingface, to_huggingface, upgrade_legacy_names
from mask2former.modeling.checkpoint_huggingface import is_huggingface
from mask2former.weights import read_weights, write_safetensors

__all__ = ["FORMATS", "convert_file"]

FORMATS = ("official", "huggingface")


def convert_file(source: Path, target: Path, to: str = "official", *, half: bool = False) -> int:
    """Convert a checkpoint of a whole Mask2Former: names, not its configuration. Optimizer states are left out.

    Args:
        source: a file in any form that ``Mask2FormerCheckpointer`` reads, or a folder of ``save_pretrained``.
        target: ``.pth`` (``{"model": ...}``) or ``.safetensors``; its folder must exist.
        to: "official", this repository's and the official release's names, or "huggingface".
        half: write floating-point weights as float16, half the size; they are float32 again when a model loads them.

    Returns:
        The number of tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the target's form is unknown, or something has no counterpart there.
    """
    if target.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{target}: cannot write weights of type {target.suffix!r}, only .pth and .safetensors.")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} would be overwritten by its own conversion; choose another name.")
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}.")
    weights = read_weights(str(source))
    if is_huggingface(weights):
        weights = from_huggingface(weights)
    else:
        upgrade_legacy_names(weights, "sem_seg_head.")
    if to == "huggingface":
        weights = to_huggingface(weights)
    if half:
        weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    if target.suffix == ".pth":
        torch.save({"model": weights}, target)
    else:
        write_safetensors(weights, target)
    return len(weights)
