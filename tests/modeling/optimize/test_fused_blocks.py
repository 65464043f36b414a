"""Residual blocks with each ReLU, and the sum before it, in the convolution."""

import copy

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import nn

from mask2former.modeling.optimize.batch_norm import fold_batch_norms
from mask2former.modeling.optimize.fused_blocks import fuse_blocks


def make(cfg: CfgNode, **resnets: object) -> nn.Module:
    for name, value in resnets.items():
        cfg.MODEL.RESNETS[name] = value
    return build_backbone(cfg).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"NORM": "BN"},
        {"NORM": "SyncBN"},
        {"DEPTH": 50, "RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 8, "RES5_DILATION": 2},
    ],
)
def test_same_features(tiny_cfg: CfgNode, changes: dict[str, object]) -> None:
    model, images = make(tiny_cfg, **changes), torch.randn(2, 3, 64, 96)
    expected = model(images)
    fold_batch_norms(model, lambda: model(images))
    names = list(model.state_dict())
    blocks = sum(map(len, model.stages)) + 1
    assert fuse_blocks(model) == blocks
    assert fuse_blocks(model) == 0  # they are
    assert list(model.state_dict()) == names
    for fused in (model, copy.deepcopy(model)):
        for name, x in fused(images).items():
            torch.testing.assert_close(x, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max()))


@torch.no_grad()
def test_norms_that_stay(tiny_cfg: CfgNode) -> None:
    model, images = make(tiny_cfg, NORM="GN", RES2_OUT_CHANNELS=64), torch.randn(1, 3, 64, 96)
    expected = model(images)
    fold_batch_norms(model, lambda: model(images))
    assert fuse_blocks(model) == 0
    assert all(map(torch.equal, model(images).values(), expected.values()))
