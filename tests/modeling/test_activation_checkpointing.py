"""Losses and gradients with recomputed activations are those without, from less memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former.modeling.activation_checkpointing import checkpoint_activations
from mask2former.modeling.backbone import TimmBackbone
from mask2former.modeling.optimize import optimize_for_inference

PARTS = ["backbone", "pixel_decoder", "transformer_decoder"]


@pytest.fixture
def swin_cfg(tiny_cfg: CfgNode) -> CfgNode:
    tiny_cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    tiny_cfg.MODEL.SWIN.EMBED_DIM, tiny_cfg.MODEL.SWIN.WINDOW_SIZE = 12, 2
    tiny_cfg.MODEL.SWIN.DEPTHS, tiny_cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 1, 1], [1, 2, 3, 4]
    return tiny_cfg


@pytest.fixture
def vit_cfg(tiny_cfg: CfgNode) -> CfgNode:
    pytest.importorskip("timm")
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.TIMM.MODEL_NAME = "TimmBackbone", "test_vit"
    return tiny_cfg


@pytest.fixture
def samples() -> list[dict[str, Any]]:
    instances = Instances((64, 64), gt_classes=torch.tensor([0, 2]), gt_masks=torch.rand(2, 64, 64) > 0.5)
    return [{"image": torch.rand(3, 64, 64) * 255, "instances": instances}]


def train_once(model: nn.Module, samples: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Losses, gradients, and the bytes that the forward pass kept."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = model(samples)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(storages.values())


@pytest.mark.parametrize("names", [*([part] for part in PARTS), PARTS])
@pytest.mark.parametrize("fixture", ["tiny_cfg", "swin_cfg", "vit_cfg", "tiny_v1_cfg"])
def test_losses_and_gradients_are_the_same(
    names: list[str], fixture: str, samples: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    cfg = request.getfixturevalue(fixture)
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.3
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    if fixture == "tiny_v1_cfg":
        cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    plain = build_model(cfg).train()
    cfg.MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING = names
    recomputing = build_model(cfg).train()
    recomputing.load_state_dict(plain.state_dict(), strict=True)
    expected_losses, expected_gradients, more = train_once(plain, samples)
    losses, gradients, less = train_once(recomputing, samples)
    for result, expected in ((losses, expected_losses), (gradients, expected_gradients)):
        assert result.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in result.items())
    assert less < more


def test_blocks_that_are_called_with_keywords() -> None:
    """Those of a ViT with rotary positions."""
    pytest.importorskip("timm")
    backbone = TimmBackbone(model_name="vit_small_patch16_dinov3").train()
    image = torch.randn(1, 3, 32, 32)

    def gradient() -> Tensor:
        backbone.zero_grad()
        sum(feature.square().mean() for feature in backbone(image).values()).backward()
        return next(backbone.parameters()).grad.clone()

    expected = gradient()
    checkpoint_activations({"backbone": backbone}, ["backbone"])
    assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norms_count_a_batch_once(tiny_cfg: CfgNode, samples: list[dict[str, Any]], norm: str) -> None:
    """Those of Cityscapes' configurations learn their statistics."""
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    tiny_cfg.MODEL.RESNETS.NORM = norm
    plain = build_model(tiny_cfg).train()
    tiny_cfg.MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING = ["backbone"]
    recomputing = build_model(tiny_cfg).train()
    recomputing.load_state_dict(plain.state_dict())
    assert any("running_mean" in name for name, _ in plain.named_buffers())
    results = [train_once(model, samples)[:2] for model in (plain, recomputing)]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1].values(), results[1][1].values(), strict=True))
    for (name, expected), buffer in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(buffer, expected), name


def test_inference_and_copies(tiny_cfg: CfgNode, samples: list[dict[str, Any]]) -> None:
    plain = build_model(tiny_cfg).eval()
    tiny_cfg.MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING = PARTS
    model = build_model(tiny_cfg).eval()
    model.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain.run_network(images)["pred_masks"]
        assert torch.equal(model.run_network(images)["pred_masks"], expected)
        other = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(other.run_network(images)["pred_masks"], expected)
        torch.testing.assert_close(optimize_for_inference(other).run_network(images)["pred_masks"], expected)


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        (
            lambda cfg: None,
            ["decoder"],
            r"CHECKPOINTING names \['decoder'\]; expected some of \['backbone', 'pixel_dec",
        ),
        (
            lambda cfg: cfg.MODEL.SEM_SEG_HEAD.update(PIXEL_DECODER_NAME="FPNPixelDecoder", TRANSFORMER_ENC_LAYERS=0),
            ["pixel_decoder"],
            "names 'pixel_decoder', but FPNPixelDecoder has no blocks that can be computed again",
        ),
    ],
)
def test_what_cannot_be_recomputed(
    tiny_cfg: CfgNode, change: Callable[[CfgNode], None], names: list[str], message: str
) -> None:
    change(tiny_cfg)
    tiny_cfg.MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING = names
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg)
