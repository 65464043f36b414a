"""Files of weights: what is read, and what is refused."""

import io
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.weights.files import (
    file_in_folder,
    read_pickle,
    read_safetensors,
    read_torch,
    read_weights,
    write_weights,
)
from tests.small_disk import disk_of


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "owned")


class Storage:
    """Pickled as torch pickles what a tensor holds."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.data,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_arrays_are_read(protocol: int, tmp_path: Path) -> None:
    weights = OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.float64(2), c=np.asfortranarray(np.eye(3))
    )
    weights._metadata = {"": {"version": 2}}  # as in a module's state_dict()
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "someone"}, protocol=protocol))
    data = read_pickle(str(path))
    assert data["__author__"] == "someone"
    assert list(data["model"]) == ["a", "b", "c"]
    for name, value in weights.items():
        np.testing.assert_array_equal(data["model"][name], value)
        assert data["model"][name].dtype == value.dtype


def test_pickles_of_either_numpy_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    data = pickle.dumps(np.arange(3), protocol=2)
    for other in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        path.write_bytes(data.replace(b"numpy.core.multiarray", other).replace(b"numpy._core.multiarray", other))
        assert read_pickle(str(path)).tolist() == [0, 1, 2]


def test_pickles_of_tensors_are_read(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4).t(), "b": torch.arange(3), "c": torch.nn.Parameter(torch.ones(2).half())}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(weights))
    data = read_pickle(str(path))
    assert all(torch.equal(data[name], tensor) and data[name].dtype == tensor.dtype for name, tensor in weights.items())


def test_storages_cannot_run_code_either(tmp_path: Path) -> None:
    mark, path, inner = tmp_path / "mark", tmp_path / "model.pkl", io.BytesIO()
    torch.save(Malicious(mark), inner)
    path.write_bytes(pickle.dumps(Storage(inner.getvalue())))
    with pytest.raises(ValueError, match="is refused"):
        read_pickle(str(path))
    assert not mark.exists()


def test_pickles_that_could_run_code_are_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Malicious(mark)}}))
    with pytest.raises(ValueError, match=r"model\.pkl is refused: it holds pathlib.* but only arrays and tensors"):
        read_pickle(str(path))
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the test can fail
    assert mark.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile"])
def test_other_functions_are_refused(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    path = tmp_path / "model.pkl"
    path.write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".encode())
    with pytest.raises(ValueError, match=f"it holds {name}, but only"):
        read_pickle(str(path))


def test_what_is_no_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"cannot be read \(no pickle has 60 there\): .* no file of its kind"):
        read_pickle(str(path))


def test_a_caffe2_model_of_anything_but_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"blobs": [1]}))
    with pytest.raises(ValueError, match=r"model\.pkl holds as its blobs a list, expected"):
        read_weights(str(path))


def test_torch_files_with_objects_are_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(2)}, "config": Malicious(mark)}, path)
    with pytest.raises(ValueError, match=r"model\.pth is refused: .* save \{'model': state_dict\} anew"):
        read_torch(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("text", ["<!DOCTYPE html>", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_text_is_no_torch_file(text: str, tmp_path: Path) -> None:
    """A page that says that there is no such file, or what Git has in its place."""
    (tmp_path / "model.pth").write_text(text)
    with pytest.raises(ValueError, match=r"model\.pth cannot be read .*: it is cut short, or no file of its kind"):
        read_torch(str(tmp_path / "model.pth"))


def test_torch_files_of_a_trainer_are_read(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}, path)
    data = read_torch(str(path))
    assert data["iteration"] == 3
    assert data["optimizer"]["state"][0]["step"] == 1
    assert torch.equal(data["model"]["weight"], model.weight)


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": torch.arange(3)}, path)
    assert read_safetensors(str(path))["a"].tolist() == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs safetensors: pip install 'mask2former\[hf\]'"):
        read_safetensors(str(path))


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"it has \['model-00001-of-00002\.safetensors'\].* larger max_shard_size"
    ):
        file_in_folder(str(tmp_path))
    (tmp_path / "last_checkpoint").write_text("")  # cut short
    with pytest.raises(FileNotFoundError, match=r"without weights \(model\.safetensors, .*, model_best\.pth\)"):
        file_in_folder(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth\n")
    for name in (
        "model_0000099.pth",
        "model_best.pth",
        "pytorch_model.bin",
        "model.safetensors",
    ):  # each before the last
        (tmp_path / name).touch()
        assert file_in_folder(str(tmp_path)) == str(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("rest", [0, 0.5, 0.99])
def test_files_that_are_cut_short(suffix: str, rest: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    weights = {"a": torch.randn(100)}
    if suffix == ".pth":
        torch.save({"model": weights}, whole)
    elif suffix == ".pkl":
        whole.write_bytes(pickle.dumps({"model": {"a": weights["a"].numpy()}, "__author__": "someone"}))
    else:
        pytest.importorskip("safetensors")
        write_weights(weights, whole)
    assert read_weights(str(whole))["a"].tolist() == weights["a"].tolist()
    cut.write_bytes(whole.read_bytes()[: int(rest * whole.stat().st_size)])
    with pytest.raises(ValueError, match=rf"cut\{suffix} (cannot be read \(.*\): it is cut short|is refused)"):
        read_weights(str(cut))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_written_files_are_like_any_other(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    weights = {"weight": torch.ones(2)}
    (tmp_path / "other").write_bytes(b"")
    write_weights(weights, tmp_path / f"model{suffix}")
    assert (tmp_path / f"model{suffix}").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(FileNotFoundError, match=f"absent/model{suffix}"):
        write_weights(weights, tmp_path / "absent" / f"model{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"model{suffix}"
    write_weights({"weight": torch.ones(2)}, path)
    with disk_of(1000), pytest.raises(OSError, match=rf"File too large: '.*/model\{suffix}'"):
        write_weights({"weight": torch.ones(1000)}, path)
    assert read_weights(str(path))["weight"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]
