"""Loading checkpoints of every published form into a model."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor

from mask2former.modeling.checkpoint_compat import convert_checkpoint

from .weight_files import file_in_folder, read_pickle, read_safetensors, read_torch

__all__ = ["Mask2FormerCheckpointer", "read_weights"]

# What a checkpoint may leave out: constants, and settings that the configuration holds.
OPTIONAL = ("criterion.empty_weight", "relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std")


class Mask2FormerCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that reads, besides its own files, those of other code bases.

    ``load`` takes a ``.pth``, ``.pkl``, ``.safetensors`` or ``.bin`` file, a folder of ``save_pretrained``, or an
    address that Detectron2's ``PathManager`` knows, ``package://`` among them. Names are converted as told in
    :mod:`~mask2former.modeling.checkpoint_compat`. No file can run code. What does not fit is told in one warning, and
    a checkpoint of which nothing fits is an error.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path and "://" not in path and os.path.isdir(path):
            path = file_in_folder(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            return {"model": read_safetensors(filename)}
        if filename.endswith(".pkl"):
            return _from_zoo(read_pickle(filename))
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return _with_model_key(f, read_torch(f))

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        model = self.model.state_dict()
        weights = _tensors(checkpoint["model"])
        converted = convert_checkpoint(weights, model)
        if any(name in model for name in converted):
            checkpoint["model"] = converted
            checkpoint.pop("matching_heuristics", None)
        else:
            checkpoint["model"] = weights  # for Detectron2's heuristics, if the file asks for them
        incompatible = super()._load_model(checkpoint)
        of_another_shape = {name for name, *_ in incompatible.incorrect_shapes}
        anew = {name for name in {*incompatible.missing_keys, *of_another_shape} if not name.endswith(OPTIONAL)}
        if all(name in anew for name in model if not name.endswith(OPTIONAL)):
            raise ValueError(f"The checkpoint has nothing that fits the model.{describe(incompatible)}")
        incompatible.missing_keys[:] = [name for name in model if name in anew - of_another_shape]
        return incompatible

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        if report := describe(incompatible):
            self.logger.warning(f"The checkpoint does not fit the model in all.{report}")


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of any form, as they are named there, without what else it holds.

    Args:
        path: a ``.pth``, ``.pkl``, ``.safetensors`` or ``.bin`` file, or a folder of ``save_pretrained``.

    Raises:
        ValueError: if it holds anything but tensors.
    """
    if os.path.isdir(path):
        path = file_in_folder(path)
    if path.endswith(".safetensors"):
        return read_safetensors(path)
    loaded = _from_zoo(read_pickle(path)) if path.endswith(".pkl") else _with_model_key(path, read_torch(path))
    return _tensors(loaded.get("model", loaded))


def describe(incompatible: _IncompatibleKeys) -> str:
    """What of a checkpoint does not fit a model, as a readable text; empty where all fits."""
    text = ""
    if incompatible.missing_keys:
        text += f"\nNot in the checkpoint, so initialised anew:\n{_grouped(incompatible.missing_keys)}"
    if incompatible.unexpected_keys:
        text += f"\nNot in the model, so left out:\n{_grouped(incompatible.unexpected_keys)}"
    if incompatible.incorrect_shapes:
        text += "\nOf another shape, so initialised anew:"
        for name, theirs, ours in incompatible.incorrect_shapes:
            text += f"\n  {name}: {tuple(theirs)} in the checkpoint, {tuple(ours)} in the model"
    return text


def _grouped(names: Iterable[str]) -> str:
    """Names that differ in indices or in their last part only, on one line: ``blocks.*.norm1.{bias, weight}``."""
    groups: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = defaultdict(int)
    for name in names:
        module, _, leaf = re.sub(r"\.\d+(?=\.)", ".*", name).rpartition(".")
        groups[module].add(leaf)
        count[module] += 1
    return "\n".join(f"  {m}.{{{', '.join(sorted(leaves))}}} ({count[m]})" for m, leaves in groups.items())


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state_dict.items():
        if isinstance(value, np.ndarray | np.generic):
            value = torch.as_tensor(value)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif name != "_metadata":
            raise ValueError(f"{name!r} in the checkpoint is {type(value).__name__}, expected a tensor or numpy array.")
    return tensors


def _with_model_key(path: str, loaded: Any) -> dict[str, Any]:
    """What ``torch.save`` wrote, with the weights under Detectron2's name where others call them differently."""
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a state_dict or {{'model': state_dict}}.")
    for key in ("state_dict", "model_state"):
        if "model" not in loaded and key in loaded:
            loaded["model"] = loaded.pop(key)
    return loaded


def _from_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's format as it is; a Caffe2 model in the way Detectron2 wants it for its own conversion."""
    if "model" in data:
        return data
    blobs = {name: value for name, value in data.get("blobs", data).items() if not name.endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
