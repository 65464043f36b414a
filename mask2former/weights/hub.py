"""Files of Hugging Face repositories."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask2former.weights.download import check_sha256
from mask2former.weights.files import WEIGHT_NAMES

__all__ = ["Repository", "parse_repository"]

_FILE_SUFFIXES = (".pth", ".pkl", ".pt", ".pt2", ".pyth", ".safetensors", ".bin")


@dataclass(frozen=True)
class Repository:
    """A repository at Hugging Face.

    Attributes:
        id: "<owner>/<name>".
        revision: a branch, a tag or a commit; None is the main branch.
        file: of weights in it, where the address names one.
    """

    id: str
    revision: str | None = None
    file: str | None = None

    def weights(self) -> Path:
        """The file of weights on this machine, downloaded at the first call into the cache of ``huggingface_hub``.

        Raises:
            ModuleNotFoundError: without the package ``huggingface_hub``.
            OSError: it is not there, or not reachable.
            ValueError: it was altered on the way; the file is removed.
        """
        names = (self.file,) if self.file else WEIGHT_NAMES
        path = self.fetch(names)
        if path is None:
            raise FileNotFoundError(
                f"{self.id} at Hugging Face has no {' or '.join(names)}. Name the file as hf://{self.id}/<file>; "
                "weights in several files must be saved as one (save_pretrained with a larger max_shard_size)."
            )
        return path

    def fetch(self, names: Sequence[str]) -> Path | None:
        """The first of these files that is there, downloaded once and checked; None if there is none.

        Raises:
            ModuleNotFoundError: without the package ``huggingface_hub``.
            OSError: the repository is not there, or not reachable.
            ValueError: the file was altered on the way; it is removed.
        """
        for name in names:
            if path := self._download(name):
                self._check(path)
                return path
        return None

    def _download(self, name: str) -> Path | None:
        try:
            from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError(f"{self.id} needs huggingface_hub: pip install 'mask2former[hf]'") from e
        try:
            return Path(hf_hub_download(self.id, name, revision=self.revision))
        except (EntryNotFoundError, OSError, ValueError) as error:
            absent = isinstance(error, EntryNotFoundError)
            if isinstance(error, LocalEntryNotFoundError):  # not reachable; what an earlier call found is remembered
                absent = try_to_load_from_cache(self.id, name, revision=self.revision) is _CACHED_NO_EXIST
            if absent:
                return None
            reason = str(error).partition("\n")[0]
            raise OSError(
                f"{self.id} cannot be downloaded from Hugging Face ({reason}). Check the name and the network, or "
                "the path if a folder here was meant; or download it by other means and give its folder."
            ) from error

    def _check(self, path: Path) -> None:
        """Large files lie in the cache under their SHA-256."""
        stored = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", stored.name):
            check_sha256(stored, stored.name, f"{path.name} of {self.id} at Hugging Face")


def parse_repository(address: str) -> Repository | None:
    """Read ``<owner>/<name>`` or ``hf://<owner>/<name>[@<revision>][/<file>]``; None if it is neither.

    Without ``hf://``, what ends like a file of weights or an exported model is the path of one, perhaps mistyped.
    """
    match = re.fullmatch(r"(hf://)?(\w[\w.-]*/\w[\w.-]*)(?:@([\w.-]+))?(?:/(.+))?", address)
    if match is None or (not match[1] and (match[3] or match[4] or match[2].endswith(_FILE_SUFFIXES))):
        return None
    return Repository(match[2], match[3], match[4])
