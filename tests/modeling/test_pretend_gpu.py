"""The whole model on another device than the CPU: the same results, and how often the CPU waits for them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import optimize_for_inference
from mask2former.modeling.postprocessing import instance, panoptic, semantic
from mask2former.ops import _library, masks
from tests.modeling.sure_model import INFERENCE, SWIN, build, make_batch
from tests.pretend_gpu import GPU, pretend_gpu

# What each variant changes; {} is the model of the tests.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "void": {"MASK_FORMER.IGNORE_VOID": True},
    "swin": SWIN,
    "whole masks": {"MASK_FORMER.MATCHING_COST_ON": "masks", "MASK_FORMER.MASK_LOSS_ON": "masks"},
    "focal loss": {"MASK_FORMER.MASK_LOSS": "focal"},
    "checkpointing": {"MASK_FORMER.ACTIVATION_CHECKPOINTING": ["pixel_decoder", "transformer_decoder"]},
}


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators that a GPU without libraries has, on both sides."""
    monkeypatch.setattr(_library, "load_library", lambda: False)
    monkeypatch.setattr(masks, "has_native_masks", lambda *_: False)


def losses_and_gradients(model: MaskFormer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(2)
    losses = model(make_batch())
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach().cpu(), value.detach(), atol=tolerance, rtol=1e-3, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_waits_once(tiny_cfg: CfgNode, variant: str) -> None:
    model = build(tiny_cfg, VARIANTS[variant]).train()
    expected_losses, expected_gradients = losses_and_gradients(model)
    model.zero_grad()
    with pretend_gpu() as waits:
        model.to(GPU)
        waits.clear()
        losses, gradients = losses_and_gradients(model)
        assert waits == {"copy to the CPU": 1}  # the costs of all layers and images
        assert_same(losses, expected_losses, 1e-4)
        assert_same(gradients, expected_gradients, 1e-3)


@pytest.mark.parametrize("variant", INFERENCE)
def test_results_are_those_of_the_cpu(tiny_cfg: CfgNode, variant: str) -> None:
    model = build(tiny_cfg, INFERENCE[variant]).eval()
    with torch.no_grad():
        expected = model(make_batch())
        with pretend_gpu():
            for found, wanted in zip(model.to(GPU)(make_batch()), expected, strict=True):
                torch.testing.assert_close(found["sem_seg"].cpu(), wanted["sem_seg"], atol=1e-4, rtol=0)
                assert torch.equal(found["panoptic_seg"][0].cpu(), wanted["panoptic_seg"][0])
                assert found["panoptic_seg"][1] == wanted["panoptic_seg"][1]
                assert len(wanted["panoptic_seg"][1]) > 0
                same_instances(found["instances"], wanted["instances"])


def test_post_processing_waits_for_what_it_must_know(tiny_cfg: CfgNode) -> None:
    model = build(tiny_cfg, {}).eval()
    with torch.no_grad(), pretend_gpu() as waits:
        model.to(GPU)
        waits.clear()
        model(make_batch())
        images = len(make_batch())
        assert waits == {
            "aten.nonzero.default": images,  # which queries compete
            "aten.bincount.default": images,
            "copy to the CPU": images,  # the classes, scores and areas of the queries, and the most probable pairs
        }


@pytest.mark.skipif(not _library.load_library(), reason="the native library is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_post_processing_by_native_operators_waits_once(
    tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = build(tiny_cfg, {}).eval()
    with torch.no_grad():
        predictions = model.predict_queries(make_batch())
        predictions = [replace(x, mask_logits=x.mask_logits.to(dtype)) for x in predictions]
        expected = [model.postprocess(x) for x in predictions]
        # Those of the CPU in place of CUDA's, which do not wait.
        for module in (instance, panoptic, semantic):
            monkeypatch.setattr(module, "has_native_masks", lambda *_: True)
        for prediction, wanted in zip(predictions, expected, strict=True):
            with pretend_gpu() as waits:
                tensors = {name: getattr(prediction, name).to(GPU) for name in ("class_logits", "mask_logits")}
                waits.clear()
                found = model.postprocess(replace(prediction, **tensors))
                assert waits == {"copy to the CPU": 1}
                assert torch.equal(found["sem_seg"].cpu(), wanted["sem_seg"])
                assert torch.equal(found["panoptic_seg"][0].cpu(), wanted["panoptic_seg"][0])
                assert found["panoptic_seg"][1] == wanted["panoptic_seg"][1]
                same_instances(found["instances"], wanted["instances"])


def same_instances(found: Instances, wanted: Instances) -> None:
    assert len(found) == len(wanted) > 0
    assert torch.equal(found.pred_masks.cpu(), wanted.pred_masks)
    assert torch.equal(found.pred_boxes.tensor.cpu(), wanted.pred_boxes.tensor)
    torch.testing.assert_close(found.scores.cpu(), wanted.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimised", [False, True])
def test_the_network_never_waits(tiny_cfg: CfgNode, optimised: bool) -> None:
    model = build(tiny_cfg, {}).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad(), pretend_gpu() as waits:
        model.to(GPU)
        fast = optimize_for_inference(model) if optimised else model
        images = images.to(GPU)
        fast.run_network(images)  # position encodings may be made at the first image
        waits.clear()
        fast.run_network(images)
        assert waits == Counter()
