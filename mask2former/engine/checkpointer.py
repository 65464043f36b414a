"""Loading checkpoints of every published form into a model."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys

from mask2former.modeling.checkpoint_compat import convert_checkpoint
from mask2former.weights import find_weights, read_checkpoint, to_tensors

__all__ = ["Mask2FormerCheckpointer"]

# What a checkpoint may leave out: constants, and settings that the configuration holds.
OPTIONAL = ("criterion.empty_weight", "relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std")


class Mask2FormerCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that reads, besides its own files, those of other code bases.

    ``load`` takes everything that :func:`~mask2former.weights.find_weights` knows: files, folders, addresses, Hugging
    Face repositories and names of the model zoo. Names of parameters are converted as told in
    :mod:`~mask2former.modeling.checkpoint_compat`. No file can run code. What does not fit is told in one warning, and
    a checkpoint of which nothing fits is an error.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        source, mark, query = path.partition("?")  # Detectron2 reads "?matching_heuristics=True"
        return super().load(find_weights(source) + mark + query if source else "", *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".safetensors", ".pkl")):
            return read_checkpoint(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        model = self.model.state_dict()
        weights = to_tensors(checkpoint["model"])
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
