"""TimmBackbone against plain timm."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from mask2former import add_maskformer2_config
from mask2former.modeling.backbone import TimmBackbone
from mask2former.modeling.checkpoint_compat import convert_checkpoint
from mask2former.modeling.checkpoint_compat.backbones import convert_pretrained_backbone

timm = pytest.importorskip("timm")

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
# Plain batch norms, batch norms with a fused activation (two kinds of extractors), none, channels last.
MODELS = ["resnet18", "regnetx_002", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"]
CHANNELS_LAST = "swin_tiny_patch4_window7_224"


def randomise(module: nn.Module) -> None:
    """Give batch norms statistics and scales that matter."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)


def plain_timm(name: str, images: Tensor, backbone: TimmBackbone) -> list[Tensor]:
    """Features of timm's own extractor, with random weights that are copied to ``backbone``."""
    reference = timm.create_model(name, features_only=True).eval()
    randomise(reference)
    backbone.body.load_state_dict(reference.state_dict())
    with torch.no_grad():
        features = reference(images)
    strides = reference.feature_info.reduction()
    return [f for f, stride in zip(features, strides, strict=True) if stride in STRIDES.values()]


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_timm(name: str, norm: str) -> None:
    images = torch.randn(2, 3, 64, 96)
    backbone = TimmBackbone(model_name=name, norm=norm).eval()
    expected = plain_timm(name, images, backbone)
    with torch.no_grad():
        features = backbone(images)
    assert list(features) == list(STRIDES)
    for name_of_feature, reference in zip(features, expected, strict=True):
        torch.testing.assert_close(features[name_of_feature], reference, rtol=1e-5, atol=1e-5)
        shape = backbone.output_shape()[name_of_feature]
        assert (shape.channels, shape.stride) == (reference.shape[1], STRIDES[name_of_feature])
    frozen = any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    assert frozen == (norm == "FrozenBN" and name != "convnext_atto")


def test_channels_last_models_give_channels_first() -> None:
    small = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    reference = timm.create_model(CHANNELS_LAST, features_only=True, strict_img_size=False, **small).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = [f.permute(0, 3, 1, 2) for f in reference(images)]
    backbone = TimmBackbone(model_name=CHANNELS_LAST).eval()
    backbone.body = reference
    with torch.no_grad():
        for feature, x in zip(backbone(images).values(), expected, strict=True):
            torch.testing.assert_close(feature, x)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", CHANNELS_LAST])
def test_odd_sizes_are_rounded_up(name: str) -> None:
    images = torch.randn(1, 3, 65, 99)
    backbone = TimmBackbone(model_name=name).eval()
    with torch.no_grad():
        features = backbone(images)
        padded = backbone(nn.functional.pad(images, (0, 29, 0, 31)))
    assert [f.shape[-2:] for f in features.values()] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    torch.testing.assert_close(features["res3"], padded["res3"][..., :9, :13])


def test_windows_that_divide_no_other_sizes() -> None:
    """MaxViT's have 8 x 8 of the coarsest pixels, so maps are made of whole ones."""
    backbone = TimmBackbone(model_name="maxvit_rmlp_pico_rw_256", out_features=["res2", "res5"])
    assert backbone.training
    assert backbone.size_divisibility == 256
    images = torch.randn(1, 3, 65, 300)
    with torch.no_grad():
        features = backbone.eval()(images)
        padded = backbone.body(nn.functional.pad(images, (0, 512 - 300, 0, 256 - 65)))
    assert {name: tuple(x.shape[-2:]) for name, x in features.items()} == {"res2": (17, 75), "res5": (3, 10)}
    torch.testing.assert_close(features["res5"], padded[-1][..., :3, :10])


@pytest.mark.parametrize(("name", "unused"), [("resnet18", "layer4"), ("tf_efficientnet_lite0", "blocks.5")])
def test_layers_past_the_last_feature_are_dropped(name: str, unused: str) -> None:
    whole = TimmBackbone(model_name=name).eval()
    backbone = TimmBackbone(model_name=name, out_features=["res4", "res2"]).eval()
    assert any(n.startswith(f"body.{unused}") for n in whole.state_dict())
    assert not any(n.startswith(f"body.{unused}") for n in backbone.state_dict())
    backbone.load_state_dict(whole.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features, expected = backbone(images), whole(images)
    assert list(features) == list(backbone.output_shape()) == ["res2", "res4"]
    torch.testing.assert_close(features["res4"], expected["res4"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_gradients_reach_the_first_layer(name: str) -> None:
    backbone = TimmBackbone(model_name=name).train()
    sum(f.square().mean() for f in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    first = next(backbone.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert all(p.grad is not None for p in backbone.parameters())


def test_frozen_norms_stay_as_they_are() -> None:
    backbone = TimmBackbone(model_name="regnetx_002", norm="FrozenBN").train()
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    assert not any("bn." in name for name, _ in backbone.named_parameters())
    images = torch.randn(2, 3, 64, 64)
    in_training = backbone(images)["res5"]
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())
    torch.testing.assert_close(in_training, backbone.eval()(images)["res5"])


def test_frozen_and_trained_norms_have_the_same_names() -> None:
    frozen, trained = (TimmBackbone(model_name="regnetx_002", norm=n).state_dict() for n in ("FrozenBN", "BN"))
    assert list(frozen) == list(trained)


def test_frozen_norms_keep_the_autocast_type() -> None:
    backbone = TimmBackbone(model_name="mobilenetv3_small_050", norm="FrozenBN").train()
    with torch.autocast("cpu", torch.bfloat16):
        assert {f.dtype for f in backbone(torch.randn(1, 3, 32, 32)).values()} == {torch.bfloat16}


def test_sync_bn() -> None:
    backbone = TimmBackbone(model_name="regnetx_002", norm="SyncBN")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in backbone.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


def test_drop_path_rate_is_passed_on() -> None:
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(1)
    backbone = TimmBackbone(model_name="convnext_atto", drop_path_rate=0.9).train()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)  # ConvNeXt scales its branches by 1e-6 at first
    assert not torch.allclose(backbone(images)["res5"], backbone(images)["res5"])


def config(**timm_options: object) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    for key, value in timm_options.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def test_built_from_a_configuration() -> None:
    cfg = config(MODEL_NAME="resnet18", OUT_FEATURES=["res5"], NORM="BN")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0], [1.0]
    backbone = build_backbone(cfg)
    assert backbone.body.conv1.in_channels == 1
    assert backbone.size_divisibility == 32
    assert {n: s.channels for n, s in backbone.output_shape().items()} == {"res5": 512}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL_NAME": "resnet18x"}, "MODEL_NAME is 'resnet18x', which timm .* does not have"),
        ({"OUT_FEATURES": ["res2", "res6"]}, r"OUT_FEATURES is \['res2', 'res6'\]; expected some of .*'res5'"),
        ({"OUT_FEATURES": []}, r"OUT_FEATURES is \[\]"),
        ({"MODEL_NAME": "vitamin_small_224"}, r"stride \[16\], but .* asks for \[4, 8, 32\]; choose from \['res4'\]"),
        (
            {"MODEL_NAME": "test_vit", "OUT_FEATURES": ["res2", "res5"]},
            r"the strides \[4, 32\] of a .*; leave none out",
        ),
        ({"MODEL_NAME": "coat_tiny"}, r"'coat_tiny' cannot .* of 224 x 448 pixels it fails .Input width .*model .224"),
        ({"MODEL_NAME": "beit_base_patch16_224"}, "'beit_base_patch16_224' cannot .* of any size"),
        ({"MODEL_NAME": "botnet26t_256"}, r"256 x 512 pixels it fails .AssertionError"),
        # Its convolutions are not padded, so its features would lie beside what they are of.
        ({"MODEL_NAME": "legacy_xception"}, r"of 96 x 160 pixels .* \[\(23, 39\), .*expected \[\(24, 40\), "),
        ({"MODEL_NAME": "resnet18", "NORM": "GN"}, "NORM is 'GN'; expected 'BN', 'FrozenBN' or 'SyncBN'"),
        ({"MODEL_NAME": "vgg11", "DROP_PATH_RATE": 0.1}, "'vgg11' has no stochastic depth; set .* 0 .it is 0.1"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(config(**options))


class TestPlainViT:
    """All features of a plain ViT have stride 16."""

    # With learnt and with rotary positions; deit3's class is made in another module than its options are read in.
    @pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3", "deit3_small_patch16_224"])
    def test_pyramid_of_the_last_feature(self, name: str) -> None:
        backbone = TimmBackbone(model_name=name).eval()
        images = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            features = backbone(images)
            reference = timm.create_model(name, dynamic_img_size=True).eval()
            reference.load_state_dict(
                {n.removeprefix("model."): t for n, t in backbone.body.state_dict().items()}, False
            )
            (last,) = reference.forward_intermediates(images, indices=1, intermediates_only=True)
            expected = backbone.pyramid.simfp_4(last)
        torch.testing.assert_close(features["res4"], expected, rtol=1e-4, atol=1e-4)
        for name_of_feature, stride in STRIDES.items():
            assert features[name_of_feature].shape == (1, 256, 64 // stride, 96 // stride)
            shape = backbone.output_shape()[name_of_feature]
            assert (shape.channels, shape.stride) == (256, stride)

    def test_odd_sizes_are_rounded_up(self) -> None:
        backbone = TimmBackbone(model_name="test_vit", out_features=["res3", "res2"], pyramid_channels=8)
        features = backbone(torch.randn(1, 3, 65, 99))
        assert {f: tuple(x.shape) for f, x in features.items()} == {"res2": (1, 8, 17, 25), "res3": (1, 8, 9, 13)}

    def test_gradients_reach_every_parameter(self) -> None:
        backbone = TimmBackbone(model_name="test_vit").train()
        sum(f.square().mean() for f in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
        assert [n for n, p in backbone.named_parameters() if p.grad is None] == []

    def test_patches_of_another_size(self) -> None:
        """Of a picture made of equal squares, patches of 14 and 16 pixels see the same."""
        name = "vit_small_patch14_dinov2"
        whole = timm.create_model(name, dynamic_img_size=True).eval()
        backbone = TimmBackbone(model_name=name).eval()
        names = {f"backbone.{n}": t for n, t in backbone.state_dict().items()}
        converted = convert_checkpoint(whole.state_dict(), names)
        backbone.load_state_dict({n.removeprefix("backbone."): t for n, t in converted.items()}, strict=False)
        squares = torch.randn(1, 3, 4, 6)
        small, large = (squares.repeat_interleave(side, 2).repeat_interleave(side, 3) for side in (14, 16))
        with torch.no_grad():
            (expected,) = whole.forward_intermediates(small, indices=1, intermediates_only=True)
            (found,) = backbone.body(large)
        assert found.shape == (1, 384, 4, 6)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    def test_timms_weights_are_read(self) -> None:
        whole = timm.create_model("test_vit")
        backbone = TimmBackbone(model_name="test_vit")
        converted = convert_pretrained_backbone(whole.state_dict(), list(backbone.state_dict()))
        missing, unexpected = backbone.load_state_dict(converted, strict=False)
        assert {name.partition(".")[0] for name in missing} == {"pyramid"}
        assert unexpected == []


def test_models_without_features_are_refused() -> None:
    @timm.models.register_model
    def without_features(pretrained: bool = False, **kwargs: object) -> nn.Module:
        raise RuntimeError("features_only not implemented for this model.")

    with pytest.raises(ValueError, match="'without_features' cannot be a backbone, since it has no features_only mode"):
        TimmBackbone(model_name="without_features")


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mask2former\[timm\]'"):
        TimmBackbone(model_name="resnet18")


@pytest.mark.slow
def test_odd_sizes_in_onnx(tmp_path: Path) -> None:
    """Which rounds negative quotients otherwise than Python."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    backbone = TimmBackbone(model_name="test_resnet", out_features=["res3", "res5"]).eval()
    free = torch.export.Dim.DYNAMIC
    sizes = {"images": {0: free, 2: free(min=33, max=1024), 3: free(min=33, max=1024)}}
    program = torch.export.export(
        backbone,
        (torch.randn(2, 3, 112, 144),),
        dynamic_shapes=sizes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    exported = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert exported is not None
    exported.save(tmp_path / "backbone.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx")
    images = torch.randn(1, 3, 80, 176)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = backbone(images).values()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-4)
