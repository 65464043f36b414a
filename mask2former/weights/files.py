"""Reading files of weights without ever running code that they hold."""

import io
import pickle
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.durable_files import replace_file, saved_bytes

__all__ = [
    "LAST",
    "WEIGHT_NAMES",
    "file_in_folder",
    "read_checkpoint",
    "read_pickle",
    "read_safetensors",
    "read_torch",
    "read_weights",
    "to_tensors",
    "write_weights",
]

# As Hugging Face's ``save_pretrained`` calls a file of weights, the first that is there counting.
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
# In the output folder of a training, names the checkpoint to resume from.
LAST = "last_checkpoint"


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of any form, as they are named there, without what else it holds.

    Args:
        path: a ``.pth``, ``.pkl``, ``.safetensors`` or ``.bin`` file.

    Raises:
        ValueError: if it is damaged, or holds anything but tensors.
    """
    return to_tensors(read_checkpoint(path)["model"])


def read_checkpoint(path: str) -> dict[str, Any]:
    """All that a checkpoint of any form holds, the weights as "model".

    Args:
        path: a ``.pth``, ``.pkl``, ``.safetensors`` or ``.bin`` file. A ``.pkl`` of Caffe2 is marked for Detectron2's
            own conversion of names.

    Raises:
        ValueError: if it is damaged, or not plain data.
    """
    if path.endswith(".safetensors"):
        return {"model": read_safetensors(path)}
    loaded = read_pickle(path) if path.endswith(".pkl") else read_torch(path)
    _check_names(path, loaded, "")
    checkpoint = _from_zoo(path, loaded) if path.endswith(".pkl") else _with_model_key(loaded)
    _check_names(path, checkpoint["model"], "as its model ")
    return checkpoint


def to_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays as tensors; what ``state_dict()`` adds to them is left out.

    Raises:
        ValueError: if anything is neither.
    """
    tensors = {}
    for name, value in state_dict.items():
        if isinstance(value, np.ndarray | np.generic):
            value = torch.as_tensor(value)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif name != "_metadata":
            raise ValueError(f"{name!r} in the checkpoint is {type(value).__name__}, expected a tensor or numpy array.")
    return tensors


def _check_names(path: str, loaded: Any, what: str) -> None:
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(
            f"{path} holds {what}a {type(loaded).__name__}, expected a state_dict or {{'model': state_dict}}, with "
            "names of parameters."
        )


def _with_model_key(loaded: dict[str, Any]) -> dict[str, Any]:
    """What ``torch.save`` wrote, with the weights under Detectron2's name."""
    for key in ("state_dict", "model_state"):
        if "model" not in loaded and key in loaded:
            loaded["model"] = loaded.pop(key)
    return loaded if "model" in loaded else {"model": loaded}


def _from_zoo(path: str, data: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's format as it is; a Caffe2 model in the way Detectron2 wants it for its own conversion."""
    if "model" in data:
        return data
    blobs = data.get("blobs", data)
    _check_names(path, blobs, "as its blobs ")
    blobs = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def read_torch(path: str) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain containers only.

    Raises:
        ValueError: if it holds anything else, or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        with open(path, "rb") as file:
            if not file.read(2).startswith((b"PK", b"\x80")):  # neither a zip nor a pickle, but a page or a pointer
                raise _damaged(path, ValueError("it is text")) from e
        raise ValueError(
            f"{path} is refused: it is not a file of tensors and plain containers alone, and reading more could run "
            "foreign code. Where you trust it, read it with torch.load(..., weights_only=False) and save "
            f"{{'model': state_dict}} anew. (PyTorch says: {str(e).splitlines()[0]})"
        ) from e
    except OSError:
        raise
    except Exception as e:  # a damaged pickle can end in anything
        raise _damaged(path, e) from e


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Read a ``.safetensors`` file.

    Raises:
        ModuleNotFoundError: without the ``safetensors`` package.
        ValueError: if it is damaged.
    """
    module = _safetensors(path)
    try:
        weights: dict[str, Tensor] = module.torch.load_file(path)
    except module.SafetensorError as e:
        raise _damaged(path, e) from e
    return weights


def write_weights(weights: Mapping[str, Tensor], path: str | Path, *, plain: bool = False, **more: Any) -> None:
    """Write tensors as ``.pth`` (``torch.save``), ``.pkl`` (Detectron2's model zoo) or ``.safetensors`` (Hugging Face).

    Args:
        weights: by name.
        path: its folder must exist.
        plain: write a ``.pth`` of nothing but the tensors, as ``load_state_dict`` takes them, not under ``"model"``.
        more: plain data to write beside them; ``.safetensors`` and what is plain have no place for it.

    Raises:
        ModuleNotFoundError: ``.safetensors`` needs the package of that name.
        OSError: it cannot be written; a file that was there stays.
        ValueError: the type of file is another, or it has none of these numbers.
    """
    path = Path(path)
    if path.suffix == ".pth":
        content = saved_bytes(partial(torch.save, dict(weights) if plain else {"model": dict(weights), **more}))
    elif path.suffix == ".pkl":
        if unknown := [name for name, tensor in weights.items() if tensor.dtype == torch.bfloat16]:
            raise ValueError(f"{path}: NumPy has no bfloat16, which {unknown[0]} is; write .pth or .safetensors.")
        arrays = {name: tensor.numpy(force=True) for name, tensor in weights.items()}
        content = pickle.dumps({"model": arrays, "__author__": "Mask2Former", **more})
    elif path.suffix == ".safetensors":
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        # Not its save_file, whose files nobody else may read.
        content = _safetensors(path).torch.save(contiguous, metadata={"format": "pt"})
    else:
        raise ValueError(f"{path}: cannot write weights of type {path.suffix!r}, only .pth, .pkl and .safetensors.")
    with replace_file(path) as file:
        file.write(content)


def _safetensors(path: str | Path) -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"{path} needs safetensors: pip install 'mask2former[hf]'") from e
    return safetensors


def read_pickle(path: str) -> Any:
    """Read a pickle of Detectron2's model zoo or conversion tools: plain containers of numpy arrays or tensors.

    Raises:
        ValueError: if it holds anything else, or is damaged.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as e:
            raise ValueError(f"{path} is refused: {e}.") from e
        except KeyError as e:  # an instruction, or an object that was never stored
            raise _damaged(path, ValueError(f"no pickle has {e} there")) from e
        except Exception as e:  # a damaged pickle can end in anything
            raise _damaged(path, e) from e


def _damaged(path: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ValueError(f"{path} cannot be read ({reason}): it is cut short, or no file of its kind. Get it again.")


class _ArrayUnpickler(pickle._Unpickler):
    """Unpickles what numpy arrays and tensors are made of; nothing else can be called.

    By the unpickler in Python, not that in C, which allocates as much memory as a damaged index of an object asks for.
    """

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


def file_in_folder(folder: str | Path) -> str:
    """The file of weights in a folder of ``save_pretrained``, or of a training: its best, else its last.

    Raises:
        FileNotFoundError: if there is none or the weights are spread over several.
    """
    root = Path(folder)
    last = root / LAST
    names = [*WEIGHT_NAMES, "model_best.pth", *([last.read_text().strip()] if last.is_file() else [])]
    for name in names:
        if (root / name).is_file():
            return str(root / name)
    raise FileNotFoundError(
        f"{folder} is a folder without weights ({', '.join(filter(None, names))}); it has "
        f"{sorted(p.name for p in root.iterdir())[:10]}. Weights in several files must be saved as one "
        "(save_pretrained with a larger max_shard_size)."
    )
