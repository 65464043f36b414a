"""Every way to name weights, through every door: training, evaluation, the API."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import mask2former as m2f
from mask2former.engine import load_config
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from mask2former.modeling.checkpoint_compat import to_huggingface
from mask2former.weights import ZooEntry, write_weights, zoo
from tests.website import Site


@pytest.fixture
def source(
    tiny_config: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """The tiny model's weights, under a name of the kind that is asked for."""
    file = tiny_config.parent / "model.pth"
    if request.param == "path":
        return str(shutil.copy(file, tmp_path / "copy.pth"))
    if request.param == "address":
        return site.put("model.pth", file.read_bytes())
    if request.param == "zoo":
        entry = ZooEntry("toys/panoptic/R18", str(tiny_config), site.put("model.pth", file.read_bytes()))
        monkeypatch.setitem(zoo(), entry.name, entry)
        return entry.name
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    write_weights(to_huggingface(torch.load(file, weights_only=True)["model"]), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mask2former"}))
    monkeypatch.setattr(hub, "hf_hub_download", lambda _, name, revision: str(tmp_path / name))
    return "hf://someone/tiny"


every_source = pytest.mark.parametrize("source", ["path", "address", "zoo", "hub"], indirect=True)


@every_source
def test_training_and_evaluation(source: str, tiny_config: Path) -> None:
    cfg = load_config(str(tiny_config), ["MODEL.WEIGHTS", source])
    model = build_model(cfg)
    Mask2FormerCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)  # what both call
    expected = torch.load(tiny_config.parent / "model.pth", weights_only=True)["model"]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


@every_source
def test_api(source: str, tiny_config: Path, photograph: np.ndarray) -> None:
    result = m2f.load(tiny_config, source).predict(photograph)
    assert result.to_coco() == m2f.load(tiny_config).predict(photograph).to_coco()
