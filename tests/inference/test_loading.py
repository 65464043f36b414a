"""What ``load`` understands: configurations, names, checkpoints, folders."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

import mask2former as m2f
from mask2former.engine.setup import load_config
from mask2former.inference.loading import model_config
from mask2former.weights import ZooEntry, zoo


@pytest.fixture
def training(tiny_config: Path, tmp_path: Path) -> Path:
    """What a training leaves: config.yaml, checkpoints, and the name of the last."""
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = load_config(str(tiny_config), ["MODEL.WEIGHTS", "a_backbone.pkl"])
    (folder / "config.yaml").write_text(cfg.dump())
    shutil.copy(tiny_config.parent / "model.pth", folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder


def test_configuration_with_weights(tiny_config: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    bare = yaml.safe_load(tiny_config.read_text())
    weights = bare["MODEL"].pop("WEIGHTS")
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
    expected = m2f.load(tiny_config).predict(photograph)
    for model in (
        m2f.load(tmp_path / "bare.yaml", weights),
        m2f.load(str(tmp_path / "bare.yaml"), opts=["MODEL.WEIGHTS", weights]),
        m2f.load(load_config(str(tmp_path / "bare.yaml")), weights=weights),
        m2f.load(load_config(str(tiny_config)), device="cpu"),
    ):
        assert model.predict(photograph).to_coco() == expected.to_coco()
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS is empty; name a trained model: .*weights= in Python"):
        m2f.load(tmp_path / "bare.yaml")


def test_configuration_of_the_caller_is_left_alone(tiny_config: Path) -> None:
    cfg = load_config(str(tiny_config))
    before = cfg.dump()
    model = m2f.load(cfg, opts=["INPUT.MIN_SIZE_TEST", "32"])
    assert cfg.dump() == before
    assert model.cfg.INPUT.MIN_SIZE_TEST == 32
    assert model.cfg.is_frozen()


def test_configuration_as_detectron2_reads_it(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has looked yet for a GPU, nor registered its data sets."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = get_cfg()
    m2f.add_maskformer2_config(cfg)
    cfg.merge_from_file(str(tiny_config))
    entry = {"FORMAT": "id_png", "IMAGES": "a", "INSTANCES": "b", "CLASS_NAMES": ["brick"]}
    cfg.DATASETS.CUSTOM.of_a_cfg_node = CfgNode(entry)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("of_a_cfg_node",)
    cfg.MODEL.DEVICE = "cuda"
    model = m2f.load(cfg)
    assert model.model.device.type == "cpu"
    assert model.metadata.thing_classes == ["brick"]
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'gpu', expected"):
        m2f.load(cfg, device="gpu")


@pytest.mark.parametrize("make", [str, Path, lambda path: load_config(str(path))])
def test_device_as_pytorch_has_it(tiny_config: Path, make: Callable[[Path], str | Path | CfgNode]) -> None:
    assert m2f.load(make(tiny_config), device=torch.device("cpu")).cfg.MODEL.DEVICE == "cpu"


def test_device_that_is_empty(tiny_config: Path) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is '', expected"):
        m2f.load(tiny_config, device="")


def test_output_folder_of_a_training(training: Path) -> None:
    assert str(training / "model_final.pth") == model_config(training).MODEL.WEIGHTS
    shutil.copy(training / "model_final.pth", training / "model_best.pth")
    assert str(training / "model_best.pth") == model_config(training).MODEL.WEIGHTS
    assert model_config(training, "other.pth").MODEL.WEIGHTS == "other.pth"
    assert m2f.load(training).default_tasks == ("panoptic",)


@pytest.mark.parametrize("name", ["config.yaml", "own_data.yaml"])
def test_configuration_of_a_training_begins_anew(training: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    file, trained = training / name, str(training / "model_final.pth")
    (training / "config.yaml").rename(file)
    for options in ({"weights": trained}, {"opts": ["MODEL.WEIGHTS", "a_backbone.pkl"]}):
        model_config(file, **options)
    assert not caplog.records
    assert model_config(file).MODEL.WEIGHTS == "a_backbone.pkl"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{file}: MODEL.WEIGHTS is 'a_backbone.pkl', with which its training began, and not what that has learnt; for "
        f"that, say MODEL.WEIGHTS {trained}."
    )


def test_configuration_of_a_training_that_has_not_begun(
    tiny_config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "own_data.yaml"
    file.write_text(load_config(str(tiny_config), ["OUTPUT_DIR", str(tmp_path)]).dump())
    model_config(file)
    assert f"{tmp_path} has no trained model yet" in caplog.text


def test_configuration_that_names_what_was_trained(training: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = training / "config.yaml"
    file.write_text(load_config(str(file), ["MODEL.WEIGHTS", str(training / "model_final.pth")]).dump())
    model_config(file)
    assert not caplog.records


def test_checkpoint_beside_its_configuration(training: Path) -> None:
    path = training / "model_final.pth"
    assert str(path) == model_config(path).MODEL.WEIGHTS
    assert model_config(path).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_checkpoint_of_the_zoo_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model_final_94dc52.pkl").touch()
    cfg = model_config(tmp_path / "model_final_94dc52.pkl")
    assert str(tmp_path / "model_final_94dc52.pkl") == cfg.MODEL.WEIGHTS
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.RESNETS.DEPTH) == (133, 50)


def test_shipped_model() -> None:
    cfg = model_config("nuclei/panoptic/Lite0")
    assert model_config(cfg.MODEL.WEIGHTS).MODEL.SEM_SEG_HEAD.NUM_CLASSES == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2


def test_weights_of_the_zoo_are_replaced() -> None:
    assert model_config("Coco/Panoptic/r50").MODEL.WEIGHTS == "coco/panoptic/R50"
    assert model_config("coco/panoptic/R50", "mine.pth").MODEL.WEIGHTS == "mine.pth"
    assert model_config("coco/panoptic/R50", opts=["MODEL.WEIGHTS", "mine.pth"]).MODEL.WEIGHTS == "mine.pth"


def test_a_name_of_the_zoo_from_end_to_end(
    tiny_config: Path, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ZooEntry("toys/panoptic/R18", str(tiny_config), "https://example.org/model.pth")
    monkeypatch.setitem(zoo(), entry.name, entry)
    local = str(tiny_config.parent / "model.pth")
    monkeypatch.setattr(PathManager, "get_local_path", lambda address, **_: local if "://" in address else address)
    found = m2f.load("toys/panoptic/r18").predict(photograph)
    assert found.to_coco() == m2f.load(tiny_config).predict(photograph).to_coco()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("absent.yaml", r"there is no configuration .*absent\.yaml"),
        ("coco/panoptik/R50", r"nor a name in the model zoo \(the closest are coco/panoptic/R50, .*list_models"),
        ("output/model_best.pth", r"there is no model 'output/model_best\.pth': it is neither a file or folder here"),
        ("empty/", r"is a folder without config\.yaml .* or config\.json"),
        ("new/config.yaml", r"is a folder without weights \(.*model_best\.pth\); it has \['config\.yaml'\]"),
        ("lonely.pth", r"without a config\.yaml beside it, .*load\(CONFIG, weights=CHECKPOINT\)"),
    ],
)
def test_what_is_no_model(tmp_path: Path, make: str, message: str) -> None:
    path = tmp_path / make
    if make in ("lonely.pth", "new/config.yaml"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("VERSION: 2")
        path = path.parent if make.startswith("new") else path
    elif make.endswith("/"):
        path.mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        m2f.load(path if path.exists() or make == "absent.yaml" else make)


def test_missing_weights(tiny_config: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS: there is no file nowhere\.pth\. Check"):
        m2f.load(tiny_config, "nowhere.pth")


def test_weights_of_another_number_of_classes(tiny_config: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks \d+ parameters of the head, .*class_embed.* the first"):
        m2f.load(tiny_config, opts=["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GeneralizedRCNN", r"META_ARCHITECTURE is 'GeneralizedRCNN', .*expected 'MaskFormer'"),  # Detectron2's default
        ("MaskFromer", r"META_ARCHITECTURE is 'MaskFromer'; registered are \[.*'MaskFormer'"),
    ],
)
def test_configurations_of_other_models(tiny_config: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m2f.load(tiny_config, opts=["MODEL.META_ARCHITECTURE", name])


def test_weights_of_a_backbone_alone(tiny_config: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_config.parent / "model.pth", weights_only=True)["model"]
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="is not a trained model of this configuration"):
        m2f.load(tiny_config, tmp_path / "backbone.pth")


def test_an_exported_file_has_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()  # which is not the file's
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"model\.onnx is an exported file, .*give the model that it was made of"):
        model_config(tmp_path / "model.onnx")


def test_names_that_are_empty(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(training)  # whose model it is not
    with pytest.raises(ValueError, match=r"model is empty; name one, as mask2former\.list_models\(\) lists them"):
        m2f.load("")
    assert m2f.load(".").model


def test_weights_that_are_empty() -> None:
    with pytest.raises(ValueError, match="weights is empty, which names no checkpoint; leave it out"):
        model_config("coco/panoptic/R50", weights="")
