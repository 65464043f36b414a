"""Whatever a file of weights holds, reading it ends in tensors or in ValueError, and runs nothing."""

import pickle
import random
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.weights.files import read_weights, write_weights
from tests.mutations import ROUNDS, mutate_bytes


def write(path: Path) -> None:
    weights = OrderedDict((f"layer{i}.weight", torch.arange(12.0).reshape(3, 4) + i) for i in range(4))
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors")
    if path.name == "old.pth":
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=False)
    elif path.name == "old.pkl":
        path.write_bytes(
            pickle.dumps({"blobs": {"conv_w": np.ones((2, 3)), "conv_b_momentum": np.ones(2)}}, protocol=2)
        )
    else:
        write_weights(weights, path)


def outcome(path: Path) -> str:
    """Any error that is not the project's own is raised."""
    try:
        tensors = read_weights(str(path))
    except Exception as error:
        told = str(path) in str(error) or "in the checkpoint is" in str(error)
        if type(error) is not ValueError or not told:
            raise
        return "refused"
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    return "read"


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "new.pkl", "old.pkl", "new.safetensors"])
def test_damaged_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what is run by accident may write here
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    rng = random.Random(name)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(5 * ROUNDS):
        path.write_bytes(mutate_bytes(whole, rng))
        outcomes[outcome(path)] += 1
    assert outcomes["refused"] > 50
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_index_far_out_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "far.pkl"
    empty_dict, store_at = b"}", b"r"  # opcodes; the latter's index has four bytes
    path.write_bytes(b"\x80\x02" + empty_dict + store_at + (2**26).to_bytes(4, "little") + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_weights(str(path)) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB; C's unpickler takes 2**20


@pytest.mark.parametrize(
    "content",
    [None, 3, "text", [], {}, {"model": None}, {"model": 3}, {"model": [1]}, {"model": {"a": None}}, {"model": {1: 2}},
     {"model": {"a": {"b": 1}}}, {"state_dict": 7}, {"model_state": "x"}, {"blobs": 5}, {"blobs": {3: 4}}],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_content_of_other_kinds(content: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert outcome(path) == ("read" if content == {} else "refused")
