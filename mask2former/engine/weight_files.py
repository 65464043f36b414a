"""Reading files of weights, wherever they are, without ever running code that they hold."""

import atexit
import io
import pickle
import re
import sys
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.utils.file_io import PathHandler, PathManager

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable

__all__ = [
    "PackagePathHandler",
    "file_in_folder",
    "read_pickle",
    "read_safetensors",
    "read_torch",
    "write_safetensors",
]


def read_torch(path: str) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain containers only.

    Raises:
        ValueError: if it holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ValueError(
            f"{path} is refused: it is not a file of tensors and plain containers alone, and reading more could run "
            "foreign code. Where you trust it, read it with torch.load(..., weights_only=False) and save "
            f"{{'model': state_dict}} anew. (PyTorch says: {str(e).splitlines()[0]})"
        ) from e


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Read a ``.safetensors`` file.

    Raises:
        ModuleNotFoundError: without the ``safetensors`` package.
    """
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"{path} needs safetensors: pip install 'mask2former[hf]'") from e
    return load_file(path)


def write_safetensors(weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write a ``.safetensors`` file, as ``transformers`` reads it.

    Raises:
        ModuleNotFoundError: without the ``safetensors`` package.
    """
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"{path} needs safetensors: pip install 'mask2former[hf]'") from e
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def read_pickle(path: str) -> Any:
    """Read a pickle of Detectron2's model zoo or conversion tools: plain containers of numpy arrays or tensors.

    Raises:
        ValueError: if it holds anything else.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as e:
            raise ValueError(f"{path} is refused: {e}.") from e


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles what numpy arrays and tensors are made of; nothing else can be called."""

    ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict")}
        | {("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar")}
        | {("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode")}  # protocol 5's arrays, protocol 2's bytes
        | {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes  # torch's own would unpickle anything
        if (module.replace("numpy._core", "numpy.core"), name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, but only arrays and tensors in plain containers are read: more could run "
                "foreign code; where you trust it, unpickle it yourself and save {'model': state_dict} with torch.save"
            )
        # numpy 1 and 2 write different modules for the same thing, and each reads both.
        core = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
        return super().find_class(re.sub(r"numpy\._?core", core, module), name)


def _storage_from_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def file_in_folder(folder: str) -> str:
    """The one file of weights in a folder of ``save_pretrained``.

    Raises:
        FileNotFoundError: if there is none or the weights are spread over several.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (Path(folder) / name).is_file():
            return str(Path(folder) / name)
    raise FileNotFoundError(
        f"{folder} is a folder without model.safetensors or pytorch_model.bin; it has "
        f"{sorted(p.name for p in Path(folder).iterdir())}. Weights in several files must be saved as one "
        "(save_pretrained with a larger max_shard_size)."
    )


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
