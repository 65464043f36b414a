import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import optimize_for_inference
from mask2former.modeling.optimize.inference import Compile, Dtype


@pytest.fixture(params=["resnet", "resnet_bn", "timm", "timm_bn", "swin"])
def cfg(request: pytest.FixtureRequest, tiny_cfg: CfgNode) -> CfgNode:
    choose_backbone(tiny_cfg, request.param)
    return tiny_cfg


def choose_backbone(cfg: CfgNode, name: str) -> None:
    model = cfg.MODEL
    if name.startswith("resnet"):
        resnet = model.RESNETS
        resnet.DEPTH, resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS, resnet.WIDTH_PER_GROUP = 50, 8, 16, 4
        resnet.NORM = "BN" if name == "resnet_bn" else "FrozenBN"
    elif name.startswith("timm"):
        pytest.importorskip("timm")
        model.BACKBONE.NAME = "TimmBackbone"
        model.TIMM.MODEL_NAME = "tf_efficientnet_lite0"
        model.TIMM.NORM = "BN" if name == "timm_bn" else "FrozenBN"
    else:
        model.BACKBONE.NAME = "D2SwinTransformer"
        model.SWIN.EMBED_DIM, model.SWIN.DEPTHS, model.SWIN.NUM_HEADS = 16, [2, 2, 2, 2], [1, 2, 2, 4]


def build(cfg: CfgNode) -> MaskFormer:
    """A model whose norms do something, as those of a trained one."""
    model = build_model(cfg).eval()
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model


def image(height: int = 96, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        span = float(x.max() - x.min())
        assert float((actual[name].float() - x).abs().max()) <= tolerance * span, name


@torch.no_grad()
def test_same_results(cfg: CfgNode) -> None:
    model = build(cfg)
    images = image()
    assert_same(optimize_for_inference(model).run_network(images), model.run_network(images), 1e-4)


@torch.no_grad()
def test_no_batch_norm_is_left_and_all_convolutions_are_channels_last(cfg: CfgNode) -> None:
    fast = optimize_for_inference(build(cfg))
    assert not [name for name, module in fast.named_modules() if getattr(module, "running_var", None) is not None]
    convs = [module for module in fast.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    features = fast.backbone(image())
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in features.values())


def test_given_model_stays_as_it_is(tiny_cfg: CfgNode) -> None:
    model = build(tiny_cfg)
    before = copy.deepcopy(model.state_dict())
    strides = [x.stride() for x in model.parameters()]
    fast = optimize_for_inference(model, dtype="bfloat16")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [x.stride() for x in model.parameters()] == strides
    assert all(x.requires_grad for x in model.sem_seg_head.parameters())
    assert fast.metadata is model.metadata
    assert fast.sem_seg_head.predictor.query_feat.weight is model.sem_seg_head.predictor.query_feat.weight


@pytest.mark.parametrize(("has_units", "warned"), [(True, False), (False, True)])
def test_bfloat16_without_units_is_told_to_be_slow(
    tiny_cfg: CfgNode,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_units: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_units})
    optimize_for_inference(build(tiny_cfg), dtype="bfloat16")
    assert ("has no units" in caplog.text) is warned


@pytest.mark.parametrize("pixel_decoder", ["MSDeformAttnPixelDecoder", "FPNPixelDecoder", "FaPNPixelDecoder"])
def test_bfloat16_is_close(tiny_cfg: CfgNode, pixel_decoder: str) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = pixel_decoder
    model = build(tiny_cfg)
    images = image()
    with torch.no_grad():
        logits = optimize_for_inference(model, dtype="bfloat16").run_network(images)["pred_logits"]
        assert logits.dtype is torch.bfloat16
        # Masked attention is a matter of thresholds, so few layers agree better than many.
        assert_same({"pred_logits": logits}, {"pred_logits": model.run_network(images)["pred_logits"]}, 0.1)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_nothing_constant_is_converted_for_each_image(tiny_cfg: CfgNode, backbone: str) -> None:
    choose_backbone(tiny_cfg, backbone)
    model = build(tiny_cfg)
    fast, images = optimize_for_inference(model, dtype="bfloat16"), image()
    constants = {x.untyped_storage().data_ptr() for x in [*fast.parameters(), *fast.buffers()]}
    converted = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].untyped_storage().data_ptr() in constants:
                converted.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        fast.run_network(images)
        with Watch():
            fast.run_network(images)
    assert not converted
    assert all(x.dtype is torch.float32 for x in model.parameters())


@torch.inference_mode()
def test_whole_model(tiny_cfg: CfgNode) -> None:
    model = build(tiny_cfg)
    entry = {"image": torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8), "height": 35, "width": 45}
    expected = model([entry])[0]
    actual = optimize_for_inference(model).with_outputs(["panoptic", "semantic"])([entry])[0]
    torch.testing.assert_close(actual["sem_seg"], expected["sem_seg"], rtol=0, atol=1e-4)
    assert torch.equal(actual["panoptic_seg"][0], expected["panoptic_seg"][0])


# Windows of any size take PyTorch many minutes.
@pytest.mark.parametrize(("backbone", "dynamic"), [("resnet", True), ("swin", False)])
def test_compiles_to_one_graph(tiny_cfg: CfgNode, backbone: str, dynamic: bool) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    if backbone == "swin":
        choose_backbone(tiny_cfg, backbone)
        tiny_cfg.MODEL.SWIN.DEPTHS = [2, 1, 1, 1]
    fast = optimize_for_inference(build(tiny_cfg))
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(fast.run_network, backend=counter, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for size in ((96, 128), (160, 64)) if dynamic else ((96, 128),):
            images = image(*size)
            assert_same(compiled(images), fast.run_network(images), 1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "DTYPE is 'float16', expected one of float32, bfloat16"),
        ({"compile_mode": "fast"}, "COMPILE is 'fast', expected one of none, default, reduce-overhead"),
        ({"compile_mode": "reduce-overhead"}, "records CUDA graphs, but the model is on 'cpu'"),
    ],
)
def test_what_cannot_be(tiny_cfg: CfgNode, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(build(tiny_cfg), **options)


@pytest.mark.parametrize("change", [lambda x: prune.l1_unstructured(x, "weight", 0.5), parametrizations.weight_norm])
def test_weights_that_are_computed_cannot_be_folded(
    tiny_cfg: CfgNode, change: Callable[[nn.Module], nn.Module]
) -> None:
    model = build(tiny_cfg)
    change(model.backbone.stem.conv1)
    with pytest.raises(ValueError, match=r"weights of backbone.stem.conv1 are computed .* permanent first, by torch"):
        optimize_for_inference(model)


@torch.no_grad()
def test_model_in_double_precision(tiny_cfg: CfgNode) -> None:
    model, images = build(tiny_cfg).double(), image().double()
    assert_same(optimize_for_inference(model).run_network(images), model.run_network(images), 1e-6)


def test_models_that_cannot_be_optimised(tiny_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="only MaskFormer models can be optimised for inference, not Linear"):
        optimize_for_inference(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"training mode.* call model.eval\(\) first"):
        optimize_for_inference(build(tiny_cfg).train())


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_weights_of_their_own(
    tiny_cfg: CfgNode, dtype: Dtype, copy_of: Callable[[MaskFormer], MaskFormer]
) -> None:
    fast, images = optimize_for_inference(build(tiny_cfg), dtype=dtype), image(64, 64)
    expected = fast.run_network(images)["pred_logits"]
    copied = copy_of(fast)
    assert torch.equal(copied.run_network(images)["pred_logits"], expected)
    copied.sem_seg_head.predictor.class_embed.bias.add_(1)
    assert not torch.equal(copied.run_network(images)["pred_logits"], expected)
    assert torch.equal(fast.run_network(images)["pred_logits"], expected)


class _Darker(MaskFormer):
    """Does something of its own to what the network takes."""

    def run_network(self, images: Tensor) -> dict[str, Any]:
        return super().run_network(images / 2)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "compile_mode"), [("float32", "none"), ("bfloat16", "none"), ("float32", "default")])
def test_network_of_a_subclass_is_run(
    tiny_cfg: CfgNode, dtype: Dtype, compile_mode: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    model, images = build(tiny_cfg), image(64, 64)
    model.__class__ = _Darker
    fast = optimize_for_inference(model, dtype=dtype, compile_mode=compile_mode)
    logits = fast.run_network(images)["pred_logits"]
    assert_same({"pred_logits": logits}, {"pred_logits": model.run_network(images)["pred_logits"]}, 0.1)
    assert not torch.equal(logits, fast.run_network(images * 2)["pred_logits"])


def test_an_optimised_model_is_not_trained(tiny_cfg: CfgNode) -> None:
    fast = optimize_for_inference(build(tiny_cfg)).train()
    with pytest.raises(ValueError, match=r"no criterion and cannot be trained; call model.eval\(\) to segment"):
        fast([{"image": torch.zeros(3, 64, 64)}])
