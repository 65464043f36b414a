"""Weights through every direction and back, bit for bit, and into the code that they are for."""

import json
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn

import mask2former as m2f
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from mask2former.engine.setup import load_config
from mask2former.inference.convert import convert_weights
from mask2former.modeling.backbone import D2SwinTransformer
from mask2former.modeling.checkpoint_compat import convert_names
from mask2former.weights import read_weights
from tests.tiny_model import CONFIG

StateDict = dict[str, Tensor]

TINY_SWIN = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 2}


def same(one: StateDict, other: StateDict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without(state: StateDict, *prefixes: str) -> StateDict:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def torchvision_resnet() -> StateDict:
    return torchvision.models.resnet18().state_dict()


def timm_resnet() -> StateDict:
    return pytest.importorskip("timm").create_model("resnet18").state_dict()


def timm_swin() -> StateDict:
    options = {"strict_img_size": False, "img_size": 64, **TINY_SWIN}
    return pytest.importorskip("timm").create_model("swin_tiny_patch4_window7_224", **options).state_dict()


def microsoft_swin() -> StateDict:
    state = {n: t for n, t in D2SwinTransformer(**TINY_SWIN).state_dict().items() if not n.startswith("norm")}
    return state | {"norm.weight": torch.ones(96), "head.weight": torch.ones(5, 96)}


class TestBackbones:
    @pytest.mark.parametrize(
        ("make", "to", "classifier"),
        [
            (torchvision_resnet, "torchvision", ("fc.",)),
            (timm_resnet, "timm", ("fc.",)),
            (timm_swin, "timm", ("norm.", "head.")),
            (microsoft_swin, "microsoft", ("norm.", "head.")),
        ],
    )
    def test_there_and_back_bit_for_bit(self, make: Any, to: str, classifier: tuple[str, ...]) -> None:
        theirs = make()
        ours = convert_names(theirs, "official")
        assert same(convert_names(ours, "official"), ours)
        assert same(convert_names(ours, to), without(theirs, *classifier))
        whole = {f"backbone.{name}": tensor for name, tensor in ours.items()} | {"sem_seg_head.predictor.a": theirs}
        assert same(convert_names(whole, to), without(theirs, *classifier))

    @pytest.mark.parametrize("make", [torchvision_resnet, microsoft_swin])
    @pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
    def test_files_that_this_code_loads(self, make: Any, suffix: str, tmp_path: Path) -> None:
        torch.save({"model": make()}, tmp_path / "theirs.pth")
        model, expected = nn.Module(), nn.Module()
        for module in (model, expected):
            module.backbone = _backbone(make)
        convert_weights(tmp_path / "theirs.pth", tmp_path / f"ours{suffix}")
        Mask2FormerCheckpointer(model).load(str(tmp_path / f"ours{suffix}"))
        Mask2FormerCheckpointer(expected).load(str(tmp_path / "theirs.pth"))
        loaded = without(expected.state_dict(), "backbone.norm")
        assert same(without(model.state_dict(), "backbone.norm"), loaded)

    @pytest.mark.parametrize("make", [torchvision_resnet, microsoft_swin])
    @pytest.mark.parametrize("suffix", [".pth", ".pkl"])
    def test_files_that_detectron2_loads(self, make: Any, suffix: str, tmp_path: Path) -> None:
        torch.save(make(), tmp_path / "theirs.pth")
        convert_weights(tmp_path / "theirs.pth", tmp_path / f"ours{suffix}")
        model = nn.Module()
        model.backbone = _backbone(make)
        DetectionCheckpointer(model).load(str(tmp_path / f"ours{suffix}"))
        for name, tensor in read_weights(str(tmp_path / f"ours{suffix}")).items():
            if "num_batches" not in name:
                assert torch.equal(model.state_dict()[f"backbone.{name}"], tensor), name

    @pytest.mark.parametrize(
        ("make", "to"), [(torchvision_resnet, "torchvision"), (timm_resnet, "timm"), (timm_swin, "timm")]
    )
    def test_plain_files_are_what_load_state_dict_takes(self, make: Any, to: str, tmp_path: Path) -> None:
        theirs = make()
        torch.save(theirs, tmp_path / "theirs.pth")
        convert_weights(tmp_path / "theirs.pth", tmp_path / "ours.pth")
        convert_weights(tmp_path / "ours.pth", tmp_path / "back.pth", to)
        assert same(torch.load(tmp_path / "back.pth", weights_only=True), without(theirs, "fc.", "head.", "norm."))

    def test_microsofts_files_have_their_key(self, tmp_path: Path) -> None:
        torch.save({"model": microsoft_swin()}, tmp_path / "theirs.pth")
        convert_weights(tmp_path / "theirs.pth", tmp_path / "ours.pth", "microsoft")
        names = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
        assert names.keys() == without(microsoft_swin(), "norm.", "head.").keys()

    def test_what_has_no_names_there(self) -> None:
        with pytest.raises(ValueError, match="'microsoft' has no names for this backbone, which is a ResNet"):
            convert_names(torchvision_resnet(), "microsoft")
        with pytest.raises(ValueError, match=r"'torchvision' has no names .* which is a Swin Transformer"):
            convert_names(microsoft_swin(), "torchvision")
        with pytest.raises(ValueError, match=r"of no model that is known here, such as \['features\.0\.weight'\]"):
            convert_names({"features.0.weight": torch.ones(1)}, "official")
        with pytest.raises(ValueError, match="no counterpart in Hugging Face's Mask2Former, such as"):
            convert_names(torchvision_resnet(), "huggingface")


def _backbone(make: Any) -> nn.Module:
    if make is microsoft_swin:
        return D2SwinTransformer(**TINY_SWIN)
    cfg = load_config(opts=["MODEL.DEVICE", "cpu"])
    cfg.defrost()
    cfg.merge_from_other_cfg(CfgNode({"MODEL": {k: CONFIG["MODEL"][k] for k in ("BACKBONE", "RESNETS")}}))
    return build_backbone(cfg)


def _write_model(folder: Path, backbone: str) -> Path:
    """A configuration and its random weights; returns the file of the configuration."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    model = config["MODEL"]
    if backbone == "swin":
        model["BACKBONE"] = {"NAME": "D2SwinTransformer"}
        model["SWIN"] = {key.upper(): list(v) if isinstance(v, tuple) else v for key, v in TINY_SWIN.items()}
    else:
        model["RESNETS"] |= {"DEPTH": 50, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4, "STEM_OUT_CHANNELS": 8}
        model["RESNETS"]["STRIDE_IN_1X1"] = False
    model["SEM_SEG_HEAD"]["NORM"] = "GN"
    model["WEIGHTS"] = str(folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    cfg = load_config(str(folder / "config.yaml"))
    state = build_model(cfg).state_dict()
    for name, tensor in state.items():
        if "predictor" in name or "running" in name:  # else masks are all or nothing
            tensor.copy_(tensor + 0.1 * torch.rand_like(tensor))
    torch.save({"model": state, "iteration": 3}, folder / "model.pth")
    return folder / "config.yaml"


class TestFolder:
    @pytest.mark.parametrize("backbone", ["swin", "resnet"])
    def test_transformers_loads_it_and_gives_the_same_logits(
        self, backbone: str, tiny_config: Path, tmp_path: Path
    ) -> None:
        transformers = pytest.importorskip("transformers")
        config = _write_model(tmp_path, backbone)
        convert_weights(tmp_path / "model.pth", tmp_path / "theirs", "huggingface")
        theirs, loading = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
            tmp_path / "theirs", output_loading_info=True
        )
        # Constants, counters, and a norm of theirs that segmentation does not use.
        assert all(name.endswith("relative_position_index") for name in loading["unexpected_keys"])
        assert all("num_batches" in name or "swin.layernorm" in name for name in loading["missing_keys"])
        assert list(theirs.config.id2label.values()) == ["cat", "dog", "sky"]
        ours = m2f.load(config)
        images = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            expected = ours.model.sem_seg_head(ours.model.backbone(images))
            actual = theirs.eval()(pixel_values=images)
        for name, found in (
            ("pred_logits", actual.class_queries_logits),
            ("pred_masks", actual.masks_queries_logits),
        ):
            reference = expected[name]
            assert (found - reference).abs().max() < 1e-5 * (reference.max() - reference.min())

    @pytest.mark.parametrize("backbone", ["swin", "resnet"])
    def test_it_is_the_same_model_here(
        self, backbone: str, tiny_config: Path, tmp_path: Path, photograph: np.ndarray
    ) -> None:
        pytest.importorskip("safetensors")
        before = m2f.load(_write_model(tmp_path, backbone))
        convert_weights(tmp_path / "config.yaml", tmp_path / "theirs", "huggingface")
        after = m2f.load(tmp_path / "theirs")
        assert same(after.model.state_dict(), before.model.state_dict())
        assert after.predict(photograph, task="semantic").semantic.names == ["cat", "dog", "sky"]
        one, other = (model.predict(photograph, task="semantic").semantic for model in (before, after))
        torch.testing.assert_close(torch.as_tensor(one.scores), torch.as_tensor(other.scores))
        processor = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
        assert processor["size"] == {"shortest_edge": 64, "longest_edge": 128}

    def test_a_configuration_of_its_own(self, tiny_config: Path, tmp_path: Path) -> None:
        pytest.importorskip("safetensors")
        _write_model(tmp_path, "swin")
        (tmp_path / "elsewhere").mkdir()
        weights = (tmp_path / "model.pth").rename(tmp_path / "elsewhere" / "m.pth")
        with pytest.raises(FileNotFoundError, match=r"m\.pth is a checkpoint without a config\.yaml beside it"):
            convert_weights(weights, tmp_path / "theirs", "huggingface")
        convert_weights(weights, tmp_path / "theirs", "huggingface", config=tmp_path / "config.yaml")
        assert (tmp_path / "theirs" / "model.safetensors").exists()

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("INPUT.FORMAT", "BGR", "INPUT.FORMAT is 'BGR'; Hugging Face's Mask2Former can only be 'RGB'"),
            ("MODEL.MASK_FORMER.CROSS_ATTENTION_NAME", "CrossAttentionLayer", "can only be 'MaskedAttentionLayer'"),
            ("MODEL.MASK_FORMER.NHEADS", "4", "ENCODER_N_HEADS is 8; .* can only be 4"),
            ("MODEL.SWIN.APE", "True", "MODEL.SWIN.APE is True; Hugging Face's Mask2Former can only be False"),
        ],
    )
    def test_settings_without_counterpart(
        self, key: str, value: str, message: str, tiny_config: Path, tmp_path: Path
    ) -> None:
        config = yaml.safe_load(_write_model(tmp_path, "swin").read_text())
        section = config
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = yaml.safe_load(value)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=message):
            convert_weights(tmp_path / "model.pth", tmp_path / "theirs", "huggingface")
        assert not (tmp_path / "theirs").exists()

    def test_a_shallow_resnet(self, tiny_config: Path, tmp_path: Path) -> None:
        config = yaml.safe_load(tiny_config.read_text())
        config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] = False
        config["MODEL"]["SEM_SEG_HEAD"]["NORM"] = "GN"
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=r"a depth of \[50, 101, 152\] .*this one has a depth of 18"):
            convert_weights(tmp_path / "a.yaml", tmp_path / "theirs", "huggingface")

    def test_folders_are_hugging_faces(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="a folder is written for Hugging Face only"):
            convert_weights("model.pth", tmp_path / "folder", "official")


class TestWholeModels:
    @pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
    def test_every_file_bit_for_bit(self, suffix: str, tiny_config: Path, tmp_path: Path) -> None:
        source = tiny_config.parent / "model.pth"
        convert_weights(source, tmp_path / f"a{suffix}")
        convert_weights(tmp_path / f"a{suffix}", tmp_path / "b.pth")
        assert same(read_weights(str(tmp_path / "b.pth")), read_weights(str(source)))

    def test_pkl_is_that_of_detectron2s_zoo(self, tiny_config: Path, tmp_path: Path) -> None:
        convert_weights(tiny_config.parent / "model.pth", tmp_path / "a.pkl")
        data = pickle.loads((tmp_path / "a.pkl").read_bytes())
        assert data["__author__"] == "Mask2Former"
        assert "matching_heuristics" not in data
        assert all(isinstance(array, np.ndarray) for array in data["model"].values())

    def test_bfloat16_has_no_pkl(self, tmp_path: Path) -> None:
        torch.save({"sem_seg_head.predictor.a": torch.ones(1).bfloat16()}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=r"NumPy has no bfloat16, which sem_seg_head\.predictor\.a is"):
            convert_weights(tmp_path / "a.pth", tmp_path / "a.pkl")

    def test_names_of_the_zoo_are_understood(self, tmp_path: Path) -> None:
        assert convert_weights("nuclei/panoptic/Lite0", tmp_path / "a.pth") > 100


def test_the_tool_is_the_command(
    tiny_config: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tiny_config.parent / "model.pth"), str(tmp_path / "a.pkl")]
    monkeypatch.setattr(sys, "argv", ["convert_weights.py", *words])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(repository / "tools" / "convert_weights.py"), run_name="__main__")
    assert (tmp_path / "a.pkl").exists()
