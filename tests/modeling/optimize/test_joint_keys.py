import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torch.profiler import profile

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize.joint_keys import join_keys


def run(model: MaskFormer, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """The predictions, and how many products with weights they took."""
    with profile() as profiler:
        predictions = model.run_network(images)
    return predictions, sum(event.name == "aten::linear" for event in profiler.events() or ())


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 5])  # of three scales some have no layer, or one more than others
@pytest.mark.parametrize("attention", ["MaskedAttentionLayer", "CrossAttentionLayer"])
def test_same_predictions_with_fewer_products(tiny_cfg: CfgNode, layers: int, attention: str) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS = layers + 1
    tiny_cfg.MODEL.MASK_FORMER.CROSS_ATTENTION_NAME = attention
    model = build_model(tiny_cfg).eval()
    images = torch.randn(2, 3, 64, 96)
    expected, before = run(model, images)
    assert join_keys(model.sem_seg_head)
    actual, after = run(model, images)
    assert before - after == 2 * layers - 2 * min(layers, 3)
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    assert not join_keys(model.sem_seg_head)  # nothing is left to join


@pytest.mark.parametrize(
    "changes",
    [{"CROSS_ATTENTION_NAME": "SMCALayer"}, {"CROSS_ATTENTION_NAME": "MaskPoolingLayer"}, {"MULTI_SCALE": "naive"}],
)
def test_where_it_is_not_done(tiny_cfg: CfgNode, changes: dict[str, str]) -> None:
    tiny_cfg.MODEL.MASK_FORMER.merge_from_list([x for item in changes.items() for x in item])
    head = build_model(tiny_cfg).eval().sem_seg_head
    arrange = head.predictor.arrange_scales
    assert not join_keys(head)
    assert head.predictor.arrange_scales is arrange


def test_other_decoders(tiny_cfg: CfgNode) -> None:
    assert not join_keys(nn.Identity())
