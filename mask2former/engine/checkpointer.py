"""Loading checkpoints of every published form into a model, and saving ones that survive a kill and a full disk."""

import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor
from torch.distributed.tensor import DTensor

from mask2former.durable_files import remove_leftovers, replace_file
from mask2former.engine.sharding import gather, is_sharded, scatter_like
from mask2former.modeling.checkpoint_compat import convert_checkpoint
from mask2former.weights import find_weights, read_checkpoint, to_tensors
from mask2former.weights.files import LAST

__all__ = ["NAME_A_TRAINED_MODEL", "Mask2FormerCheckpointer", "WholeModelCheckpointer"]

NAME_A_TRAINED_MODEL = (
    "name a trained model: MODEL.WEIGHTS model.pth at the end of a command line (after --opts, where it has that "
    "option), weights= in Python"
)

# What a checkpoint may leave out: constants, and settings that the configuration holds.
OPTIONAL = ("criterion.empty_weight", "relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std")

# FrozenBatchNorm2d fills in those that a checkpoint lacks, so that they are never missing.
_FILLED_IN = ("running_mean", "running_var")

# What is learnt for each query: (Q, C).
_QUERIES = (".query_feat.weight", ".query_embed.weight")


class Mask2FormerCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that reads, besides its own files, those of other code bases.

    ``load`` takes everything that :func:`~mask2former.weights.find_weights` knows: files, folders, addresses, Hugging
    Face repositories and names of the model zoo. Names of parameters are converted as told in
    :mod:`~mask2former.modeling.checkpoint_compat`. No file can run code. Of another number of queries, the first are
    loaded. One warning lists what does not fit, and a checkpoint of which nothing fits, or with NaN, is an error.

    ``save`` writes to a file beside the checkpoint, which takes its name when all of it is on the disk; only then does
    ``last_checkpoint`` name it. So there is a whole checkpoint to resume from at any time after the first.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and make it the one to resume from.

        All processes may call it, and must where the model is sharded; one of them writes.

        Args:
            name: without ".pth".
            kwargs: plain data that belongs to it, as ``iteration``.

        Raises:
            OSError: if it could not be written; what was saved before is as it was.
        """
        if not self.save_dir or not (self.save_to_disk or is_sharded(self.model)):
            return
        state = {key: part.state_dict() for key, part in {"model": self.model, **self.checkpointables}.items()}
        state = gather(state, keep=self.save_to_disk) if is_sharded(self.model) else state
        if not self.save_to_disk:
            return
        self.remove_leftovers()
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            with replace_file(path) as file:
                torch.save({**state, **kwargs}, file)
        except (OSError, RuntimeError) as e:  # PyTorch turns the first into the second
            raise self._not_written(path, e) from e
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if not self.save_to_disk:
            return
        path = Path(self.save_dir, LAST)
        try:
            with replace_file(path) as file:
                file.write(last_filename_basename.encode())
        except OSError as e:
            raise self._not_written(path, e) from e

    def remove_leftovers(self) -> None:
        """Remove what a killed process has not finished; for the one process that saves to the folder."""
        if self.save_dir and self.save_to_disk:
            remove_leftovers(Path(self.save_dir), "*.pth", LAST)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the latest whole checkpoint of ``save_dir`` with all its state, or else the weights of ``path``.

        Args:
            path: as for ``load``; read where ``resume`` is false or the folder has no checkpoint yet.
            resume: whether to look into the folder. Where its latest file is missing or damaged, a warning says so, and
                the latest whole one is taken.

        Returns:
            What the checkpoint holds besides weights and state.

        Raises:
            ValueError: if there are checkpoints to resume from, but none that is whole.
        """
        last = self._agree_on_checkpoint() if resume else None
        return self.load(path, checkpointables=[]) if last is None else self.load(last)

    def _agree_on_checkpoint(self) -> str | None:
        """One process looks, so that all go on from the same, or all end with its error and none waits for it."""
        found: str | ValueError | None = None
        if comm.is_main_process():
            try:
                found = self._find_whole_checkpoint()
            except ValueError as error:
                found = error
        found = comm.all_gather(found)[0]
        if isinstance(found, ValueError):
            raise found
        return found

    def _find_whole_checkpoint(self) -> str | None:
        tagged = Path(self.get_checkpoint_file())
        is_tagged = tagged.name != "" and tagged != Path(self.save_dir)
        numbered = sorted(Path(self.save_dir).glob("model_" + "[0-9]" * 7 + ".pth"), reverse=True)
        faults = [] if is_tagged or not numbered else [f"{LAST} is missing or empty"]
        for candidate in ([tagged] if is_tagged else []) + [file for file in numbered if file != tagged]:
            fault = _fault(candidate)
            if fault is None:
                if faults:
                    self.logger.warning(f"Resuming from {candidate}, since {'; '.join(faults)}.")
                return str(candidate)
            faults.append(f"{candidate.name} {fault}")
        if not faults:
            return None
        raise ValueError(
            f"{self.save_dir} has no whole checkpoint to resume from: {'; '.join(faults)}. Write the name of one that "
            f"is whole (a copy, or model_best.pth) into {LAST}; or train without --resume, to begin anew."
        )

    def _not_written(self, path: Path, error: Exception) -> OSError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        reason = str(error) if cause is None else cause.strerror or str(cause)
        if path.parent.is_dir():
            reason += f" ({shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there)"
        last = self.get_checkpoint_file()
        return OSError(
            f"{path} could not be written: {reason}. "
            f"{f'The checkpoint before, {last}, is whole' if last else 'There was no checkpoint before'}. Make room "
            "(older model_*.pth can go) or correct what is wrong, and go on with --resume."
        )

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
        _check_finite(checkpoint["model"], model)
        shapes = _keep_queries(checkpoint["model"], model)
        checkpoint["model"] = {
            n: scatter_like(t, model[n]) if n in model else t for n, t in checkpoint["model"].items()
        }
        incompatible = super()._load_model(checkpoint)
        incompatible.incorrect_shapes.extend(shapes)
        of_another_shape = {name for name, *_ in incompatible.incorrect_shapes}
        anew = {name for name in {*incompatible.missing_keys, *of_another_shape} if not name.endswith(OPTIONAL)}
        if all(name in anew for name in model if not name.endswith((*OPTIONAL, *_FILLED_IN))):
            raise ValueError(f"The checkpoint has nothing that fits the model.{describe(incompatible)}")
        incompatible.missing_keys[:] = [name for name in model if name in anew - of_another_shape]
        return incompatible

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        if report := describe(incompatible):
            self.logger.warning(f"The checkpoint does not fit the model completely.{report}")


class WholeModelCheckpointer(Mask2FormerCheckpointer):
    """Refuses checkpoints that leave part of the head as it was initialised: its predictions would be noise."""

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        incompatible = super()._load_model(checkpoint)
        of_another_shape = [name for name, *_ in incompatible.incorrect_shapes]
        absent = [key for key in (*incompatible.missing_keys, *of_another_shape) if key.startswith("sem_seg_head.")]
        if absent:
            raise ValueError(
                f"MODEL.WEIGHTS lacks {len(absent)} parameters of the head, {absent[0]} the first: it is not a "
                f"trained model of this configuration; {NAME_A_TRAINED_MODEL}"
            )
        return incompatible


def _check_finite(weights: dict[str, Tensor], model: dict[str, Tensor]) -> None:
    """Raise ValueError if there is a NaN or an infinite number, with which a model finds nothing and learns nothing.

    A tensor that has them in the new model, as a mask of an attention may, is left alone.
    """
    differ = [name for name, x in weights.items() if name in model and not x.isfinite().all()]
    wrong = [name for name in differ if model[name].isfinite().all()]
    if wrong:
        raise ValueError(
            f"The checkpoint has NaN or infinite numbers in {len(wrong)} of {len(weights)} parameters, {wrong[0]} the "
            "first: its training has diverged, or the file is damaged. Take an earlier checkpoint, or get it again."
        )


def _keep_queries(weights: dict[str, Tensor], model: dict[str, Tensor]) -> list[tuple[str, Any, Any]]:
    """Put the first queries of a checkpoint among those of a model that has another number, in ``weights``.

    Returns:
        Names, shapes in the checkpoint and in the model.
    """
    shapes = [(name, x.shape, model[name].shape) for name, x in weights.items() if name in model]
    shapes = [(name, theirs, ours) for name, theirs, ours in shapes if _is_of_queries(name, theirs, ours)]
    for name, *_ in shapes:
        theirs, ours = weights[name], model[name]
        weights[name] = (ours.full_tensor() if isinstance(ours, DTensor) else ours).clone()
        weights[name][: len(theirs)] = theirs[: len(ours)]
    return shapes


def _is_of_queries(name: str, theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether a parameter has another number of queries in the checkpoint than in the model, and nothing else."""
    return name.endswith(_QUERIES) and theirs[:1] != ours[:1] and theirs[1:] == ours[1:]


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a file of ``torch.save``; None if it is whole, by its checksums."""
    if not checkpoint.is_file():
        return "does not exist"
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
    except Exception as e:  # zipfile has many for a damaged header: BadZipFile, NotImplementedError, zlib.error, ...
        return f"is cut short or unreadable ({e})"
    return f"is damaged ({damaged} in it)" if damaged else None


def describe(incompatible: _IncompatibleKeys) -> str:
    """What of a checkpoint does not fit a model, as a readable text; empty where all fits."""
    text = ""
    if incompatible.missing_keys:
        text += f"\nNot in the checkpoint, so initialised anew:\n{_grouped(incompatible.missing_keys)}"
    if incompatible.unexpected_keys:
        text += f"\nNot in the model, so left out:\n{_grouped(incompatible.unexpected_keys)}"
    queries = [x for x in incompatible.incorrect_shapes if _is_of_queries(*x)]
    if queries:
        text += f"\nOf another number, so the first of them were taken:{_listed(queries)}"
    others = [x for x in incompatible.incorrect_shapes if not _is_of_queries(*x)]
    if others:
        text += f"\nOf another shape, so initialised anew:{_listed(others)}"
    return text


def _listed(shapes: Iterable[tuple[str, Any, Any]]) -> str:
    return "".join(f"\n  {n}: {tuple(x)} in the checkpoint, {tuple(y)} in the model" for n, x, y in shapes)


def _grouped(names: Iterable[str]) -> str:
    """Names that differ in indices or in their last part only, on one line: ``blocks.*.norm1.{bias, weight}``."""
    groups: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = defaultdict(int)
    for name in names:
        module, _, leaf = re.sub(r"\.\d+(?=\.)", ".*", name).rpartition(".")
        groups[module].add(leaf)
        count[module] += 1
    return "\n".join(f"  {m}.{{{', '.join(sorted(leaves))}}} ({count[m]})" for m, leaves in groups.items())
