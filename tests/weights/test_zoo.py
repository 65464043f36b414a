"""Names of published models, and of the backbones that they start from."""

import json
import urllib.error
from pathlib import Path

import pytest
import torchvision
import yaml
from detectron2.utils.file_io import PathManager

import mask2former as m2f
from mask2former.weights.zoo import find_backbone, find_entry, installed_file, suggest_names, zoo


def test_every_configuration_is_there() -> None:
    for entry in zoo().values():
        assert installed_file(entry.config).is_file()
        assert entry.checkpoint.startswith("https://") or installed_file(entry.checkpoint).is_file()


def test_table_is_the_official_one(contract_dir: Path) -> None:
    official = json.loads((contract_dir / "model_zoo.json").read_text())
    ours = {entry.config.removeprefix("configs/"): entry for entry in zoo().values() if "://" in entry.checkpoint}
    assert ours.keys() == official.keys()
    for config, row in official.items():
        assert ours[config].checkpoint == row["checkpoint"]
        assert ours[config].metrics
        facts = {key: value for key, value in row.items() if key not in ("section", "Backbone", "checkpoint")}
        schedule = {"epochs": ours[config].epochs, "iterations": ours[config].iterations}
        thousands = {"iterations": 1000, "epochs": 1}
        assert {k: float(v) for k, v in facts.items() if k not in schedule} == ours[config].metrics
        assert {k: int(v.removesuffix("k")) * thousands[k] for k, v in facts.items() if k in schedule} == {
            key: value for key, value in schedule.items() if value
        }


def test_names_say_data_set_task_and_backbone() -> None:
    assert "coco/panoptic/R50" in m2f.list_models()
    for name, entry in zoo().items():
        data, task, backbone = name.split("/")
        assert data in entry.config
        assert task in entry.config
        assert backbone.split("-")[-1].lower() in entry.config.lower() or backbone.startswith("Swin-")
    assert {name.split("/")[2] for name in zoo() if "swin_large" in zoo()[name].config} == {"Swin-L-IN21k"}
    assert zoo()["coco/panoptic/R50"].metrics == {"PQ": 51.9, "AP": 41.7, "mIoU": 61.7}


def test_find_by_name_in_any_case_and_by_file_name() -> None:
    entry = find_entry("COCO/Panoptic/r50")
    assert entry is zoo()["coco/panoptic/R50"]
    assert find_entry("model_final_94dc52.pkl") is entry
    assert find_entry("coco/panoptic") is None
    assert suggest_names("coco/panoptik/R50")[0] == "coco/panoptic/R50"
    assert suggest_names("?")


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> str:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    with pytest.raises(
        OSError, match=r"coco/panoptic/R50 cannot be downloaded from https.*Name or service.*give the path of the file"
    ):
        m2f.load("coco/panoptic/R50")


def test_every_official_backbone_is_known(repository: Path) -> None:
    named = {
        yaml.safe_load(file.read_text()).get("MODEL", {}).get("WEIGHTS", "")
        for file in (repository / "configs").rglob("*.yaml")
    }
    unknown = {name for name in named if name and "://" not in name and not find_backbone(name)}
    assert unknown == set()
    assert find_backbone("R-101.pkl") == torchvision.models.ResNet101_Weights.IMAGENET1K_V1.url
    assert find_backbone("R-102.pkl") is None


def test_file_that_is_not_installed() -> None:
    with pytest.raises(FileNotFoundError, match=r"configs/absent\.yaml is part of Mask2Former's repository"):
        installed_file("configs/absent.yaml")
