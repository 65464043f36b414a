"""Models of Hugging Face's ``save_pretrained``: their configuration in our keys, their logits from our code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import mask2former as m2f
from mask2former.engine.setup import load_config
from mask2former.inference import huggingface
from mask2former.inference.huggingface import keys
from mask2former.inference.request import Options, build_request
from mask2former.weights import find_entry, installed_file

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _encoder(kind: str, transformers: Any) -> Any:
    if kind == "swin":
        return transformers.SwinConfig(
            embed_dim=12, window_size=2, depths=[1, 2, 2, 1], num_heads=[1, 2, 3, 4], out_features=STAGES
        )
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3], out_features=STAGES
    )


def _save_model(folder: Path, kind: str, labels: list[str]) -> Any:
    """A small model of theirs with random weights, saved; returned in eval mode."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    config = transformers.Mask2FormerConfig(
        backbone_config=_encoder(kind, transformers),
        feature_size=32,
        mask_feature_size=48,
        hidden_dim=32,
        encoder_layers=2,
        encoder_feedforward_dim=40,
        decoder_layers=4,
        dim_feedforward=64,
        num_attention_heads=4,
        num_queries=7,
        id2label=dict(enumerate(labels)),
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "quer" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    preprocessing = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "size": {"shortest_edge": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_folder_gives_their_logits(kind: str, tmp_path: Path) -> None:
    theirs = _save_model(tmp_path, kind, ["cat", "dog", "sky", "sea"])
    ours = m2f.load(tmp_path, device="cpu")
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]))
    with torch.no_grad():
        expected = theirs(pixel_values=((image / 255 - mean) / std)[None])
        model = ours.model
        outputs = model.sem_seg_head(model.backbone(model._normalise_and_pad([{"image": image}]).tensor))
    for actual, reference in (
        (outputs["pred_logits"], expected.class_queries_logits),
        (outputs["pred_masks"], expected.masks_queries_logits),
    ):
        assert (actual - reference).abs().max() < 1e-4 * (reference.max() - reference.min())
    result = ours.predict(image, task="semantic")
    assert result.semantic.names == ["cat", "dog", "sky", "sea"]
    prepared = ours._prepare(build_request(ours, Options()), np.zeros((32, 48, 3), np.uint8))[1]
    assert prepared["image"].shape == (3, 64, 96)


def test_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    _save_model(tmp_path, "swin", ["cat", "dog"])
    (tmp_path / "preprocessor_config.json").unlink()
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((repository, name))
        if not (tmp_path / name).is_file():
            raise hub.errors.EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    model = m2f.load("hf://someone/mask2former-tiny", device="cpu")
    assert model.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    assert asked == [
        ("someone/mask2former-tiny", name) for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    ]
    # ImageNet's statistics, where the repository has none.
    assert [round(value, 3) for value in model.cfg.MODEL.PIXEL_MEAN] == [123.675, 116.28, 103.53]


def test_repository_without_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def fail(repository: str, name: str, revision: str | None = None) -> str:
        raise hub.errors.EntryNotFoundError(name)

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match=r"someone/model at Hugging Face has no config\.json"):
        m2f.load("someone/model")


def _write(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mask2former", **config}))
    (folder / "model.safetensors").touch()
    return folder


def test_defaults_are_theirs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Mask2FormerConfig()
    cfg = huggingface.read_folder(_write(tmp_path / "model"))
    for section, table in (
        (cfg.MODEL.SEM_SEG_HEAD, keys.HEAD_KEYS),
        (cfg.MODEL.MASK_FORMER, keys.MASK_FORMER_KEYS),
    ):
        for their_key, our_key in table.items():
            assert section[our_key] == getattr(theirs, their_key), their_key
    for key in ("depths", "embed_dim", "num_heads", "window_size", "mlp_ratio", "patch_size"):
        assert json.dumps(cfg.MODEL.SWIN[key.upper()]) == json.dumps(getattr(theirs.backbone_config, key)), key


@pytest.mark.parametrize(
    ("data", "key", "task"),
    [
        ("coco_2017_train_panoptic", "stuff_classes", "PANOPTIC_ON"),
        ("coco_2017_train", "thing_classes", "INSTANCE_ON"),
        ("cityscapes_fine_panoptic_train", "stuff_classes", "PANOPTIC_ON"),
        ("ade20k_sem_seg_train", "stuff_classes", "SEMANTIC_ON"),
    ],
)
def test_known_classes_are_recognised(tmp_path: Path, data: str, key: str, task: str) -> None:
    labels = {str(i): name for i, name in enumerate(MetadataCatalog.get(data).get(key))}
    cfg = huggingface.read_folder(_write(tmp_path / "model", id2label=labels))
    assert (data,) == cfg.DATASETS.TEST
    assert len(labels) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert [name for name in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON") if cfg.MODEL.MASK_FORMER.TEST[name]] == [
        task
    ]


def test_dropout_is_of_both_decoders(tmp_path: Path) -> None:
    mask_former = huggingface.read_folder(_write(tmp_path / "model", dropout=0.25)).MODEL.MASK_FORMER
    assert (mask_former.DROPOUT, mask_former.DECODER_DROPOUT) == (0.25, 0.25)


def test_unknown_classes_are_things(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = huggingface.read_folder(_write(tmp_path / "model", id2label={"0": "cat", "1": "sky"}))
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    assert metadata.thing_classes == ["cat", "sky"]
    assert "all are taken for things" in caplog.text


def test_pictures_are_prepared_as_theirs(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"shortest_edge": 480, "longest_edge": 1000}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
        )
    )
    cfg = huggingface.read_folder(folder)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (480, 1000)
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([0, 0, 0], [255, 255, 255])
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": False}))
    assert huggingface.read_folder(folder).INPUT.MIN_SIZE_TEST == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "detr"}, "is of a 'detr' model, expected 'mask2former'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', expected 'relu'"),
        ({"backbone_config": {"model_type": "dinov2"}}, r"the backbone is 'dinov2' .*expected 'swin', or a 'resnet'"),
        ({"backbone_config": {"model_type": "resnet", "depths": [2, 2, 2, 2]}}, r"depths \[2, 2, 2, 2\]"),
    ],
)
def test_what_ours_cannot_be(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        huggingface.read_folder(_write(tmp_path / "model", **config))


def test_no_weights(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"without weights \(model\.safetensors, pytorch_model\.bin"):
        huggingface.read_folder(folder)


@pytest.mark.parametrize("name", [name for name in m2f.list_models() if not name.startswith("nuclei/")])
def test_official_models_as_theirs_and_back(name: str, tmp_path: Path) -> None:
    """Their configurations; the weights are in test_convert.py."""
    pytest.importorskip("safetensors")
    cfg = load_config(str(installed_file(find_entry(name).config)))
    huggingface.write_folder(cfg, {}, tmp_path)
    ours, theirs = _leaves(cfg.MODEL), _leaves(huggingface.read_folder(tmp_path).MODEL)
    of_training_or_testing = {"DEVICE", "WEIGHTS", "IGNORE_VALUE", "FREEZE_AT", "NORM", "PRETRAIN_IMG_SIZE"}
    different = {key for key, value in ours.items() if value != theirs[key]}
    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        different = {key for key in different if not key.startswith("RESNETS.")}
    assert {key for key in different if not key.startswith("MASK_FORMER.TEST.")} == {
        key for key in different if key.rpartition(".")[2] in of_training_or_testing
    }


def _leaves(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return leaves


def test_their_processor_prepares_pictures_as_ours(tiny_config: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    cfg = load_config(str(installed_file(find_entry("coco/panoptic/R50").config)), ["INPUT.MIN_SIZE_TEST", "64"])
    huggingface.write_folder(cfg, {}, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = np.full((48, 80, 3), 100, dtype=np.uint8)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    assert theirs.shape == (1, 3, 64, 128)  # 64 x 107, padded
    torch.testing.assert_close(theirs[0, :, :, :100], ((100 - mean) / std).expand(3, 64, 100), rtol=0, atol=1e-4)
