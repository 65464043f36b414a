"""Published models by name: which configuration, which checkpoint, and which results."""

import difflib
import functools
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from mask2former.weights.download import download

__all__ = ["ZooEntry", "find_backbone", "find_entry", "installed_file", "list_models", "suggest_names", "zoo"]

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ZooEntry:
    """One published model.

    Attributes:
        name: "<data set>/<task>/<backbone>".
        config: its configuration, a path below the repository.
        checkpoint: an address, or a path below the repository.
        metrics: published results on the validation set, in percent.
        epochs, iterations: of the training, whichever of the two its publishers count.
        sha256: of the checkpoint, in hexadecimal, where it is known.
    """

    name: str
    config: str
    checkpoint: str
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: int | None = None
    iterations: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """Of the checkpoint."""
        return self.checkpoint.rpartition("/")[2]

    def checkpoint_file(self) -> str:
        """Where the checkpoint is on this machine, downloaded at the first call.

        Raises:
            FileNotFoundError: it is part of the repository, which is not there.
            OSError: it cannot be downloaded.
            ValueError: what was downloaded is not what was published.
        """
        if "://" not in self.checkpoint:
            return str(installed_file(self.checkpoint))
        return download(self.checkpoint, sha256=self.sha256, name=self.name)


@functools.cache
def zoo() -> dict[str, ZooEntry]:
    """All published models by name, in the order of the table."""
    table = json.loads(resources.files(__package__).joinpath("model_zoo.json").read_text("utf-8"))
    return {name: ZooEntry(name, **entry) for name, entry in table.items()}


def list_models() -> list[str]:
    """The names that ``load`` knows, such as "coco/panoptic/R50"."""
    return list(zoo())


def find_entry(name: str) -> ZooEntry | None:
    """The model of a name (in any case), or of a checkpoint's file name."""
    wanted = name.casefold()
    for entry in zoo().values():
        if wanted in (entry.name.casefold(), entry.file_name.casefold()):
            return entry
    return None


def find_backbone(name: str) -> str | None:
    """The address of the ImageNet weights that an official configuration calls so, such as "R-101.pkl".

    The official release asks its users to download and convert these files; here they are read as published.
    """
    table: dict[str, str] = json.loads(resources.files(__package__).joinpath("backbones.json").read_text("utf-8"))
    return table.get(name)


def suggest_names(name: str) -> list[str]:
    """The names most like one that is not there, at least one."""
    names = {entry.casefold(): entry for entry in zoo()}
    return [names[close] for close in difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.0)]


def installed_file(path: str) -> Path:
    """A file of the repository, in the checkout that the package runs from or in the installed package.

    Raises:
        FileNotFoundError: it is in neither.
    """
    for root in (_PACKAGE.parent, _PACKAGE):
        if (root / path).is_file():
            return root / path
    raise FileNotFoundError(
        f"{path} is part of Mask2Former's repository, but this installation is without it; install from a checkout, "
        "or give the path of a configuration and weights=."
    )
