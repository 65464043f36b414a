"""MODEL.MASK_FORMER.TEST.BATCH_BY_SIZE: an image's result does not depend on the other images of its batch."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former.modeling.postprocessing import QueryPrediction

# Of different padded sizes, of equal ones after padding (the last two), wide, high, and smaller than a stride.
BATCHES = [
    [(64, 96), (96, 64)],
    [(33, 47), (128, 40), (64, 64), (60, 50)],
    [(20, 150), (9, 13), (96, 96)],
]


def _make_resnet(cfg: CfgNode) -> None:
    pass


def _make_swin(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.EMBED_DIM = 24
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 2, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 3, 4]
    cfg.MODEL.SWIN.WINDOW_SIZE = 4


def _build(cfg: CfgNode, batch_by_size: bool = True) -> nn.Module:
    cfg.MODEL.MASK_FORMER.TEST.BATCH_BY_SIZE = batch_by_size
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    with torch.no_grad():
        # What padding would show in: biases, gains, and sampling that depends on the query.
        for name, parameter in model.sem_seg_head.named_parameters():
            if parameter.dim() == 1 or ".sampling_offsets." in name or ".attention_weights." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _inputs(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    images = [torch.rand(3, *size) * 255 for size in sizes]
    return [{"image": image, "height": 40 + i, "width": 60} for i, image in enumerate(images)]


def _record_outputs(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What reaches post-processing, image by image."""
    seen: list[dict[str, Tensor]] = []
    predict = model.predict_queries

    def record(batch: list[dict[str, Any]]) -> list[QueryPrediction]:
        predictions = predict(batch)
        for entry, prediction in zip(batch, predictions, strict=True):
            logits, masks = prediction.class_logits, prediction.mask_logits
            seen.append({"image": entry["image"], "pred_logits": logits, "pred_masks": masks})
        return predictions

    monkeypatch.setattr(model, "predict_queries", record)
    return seen


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the range of ``b``."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / (b.max() - b.min()))


@pytest.mark.parametrize("sizes", BATCHES)
@pytest.mark.parametrize("make_backbone", [_make_resnet, _make_swin])
def test_logits_and_masks_are_those_of_single_images(
    tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, make_backbone: Any, sizes: list[tuple[int, int]]
) -> None:
    make_backbone(tiny_cfg)
    model = _build(tiny_cfg)
    seen = _record_outputs(model, monkeypatch)
    inputs = _inputs(sizes)
    with torch.no_grad():
        model(inputs)
        batched = {id(entry["image"]): entry for entry in seen}
        seen.clear()
        for entry in inputs:
            model([entry])
    for alone in seen:
        ours = batched.pop(id(alone["image"]))
        assert _difference(ours["pred_logits"], alone["pred_logits"]) < 1e-4
        assert _difference(ours["pred_masks"], alone["pred_masks"]) < 1e-4


@pytest.mark.parametrize("sizes", BATCHES)
def test_results_are_those_of_single_images(tiny_cfg: CfgNode, sizes: list[tuple[int, int]]) -> None:
    model = _build(tiny_cfg)
    inputs = _inputs(sizes)
    with torch.no_grad():
        batched = model(inputs)
        alone = [model([entry])[0] for entry in inputs]
    for i, (ours, theirs) in enumerate(zip(batched, alone, strict=True)):
        assert ours["sem_seg"].shape == (3, 40 + i, 60)
        assert _difference(ours["sem_seg"], theirs["sem_seg"]) < 1e-4
        assert ours["panoptic_seg"][1] == theirs["panoptic_seg"][1]
        assert (ours["panoptic_seg"][0] != theirs["panoptic_seg"][0]).float().mean() < 1e-3
        _assert_same_instances(ours["instances"], theirs["instances"])


def _assert_same_instances(ours: Instances, theirs: Instances) -> None:
    a, b = ours.scores.argsort(), theirs.scores.argsort()
    torch.testing.assert_close(ours.scores[a], theirs.scores[b], atol=1e-4, rtol=0)
    assert torch.equal(ours.pred_classes[a], theirs.pred_classes[b])
    assert (ours.pred_masks[a] != theirs.pred_masks[b]).float().mean() < 1e-3


def test_single_image_is_what_it_is_by_default(tiny_cfg: CfgNode) -> None:
    inputs = _inputs([(50, 70)])
    with torch.no_grad():
        by_default = _build(tiny_cfg, batch_by_size=False)(inputs)[0]
        masked = _build(tiny_cfg)(inputs)[0]
    assert torch.equal(masked["sem_seg"], by_default["sem_seg"])


def test_default_is_the_official_release_where_padding_takes_part(tiny_cfg: CfgNode) -> None:
    assert not tiny_cfg.MODEL.MASK_FORMER.TEST.BATCH_BY_SIZE
    model = _build(tiny_cfg, batch_by_size=False)
    inputs = _inputs([(32, 32), (128, 128)])
    with torch.no_grad():
        batched, alone = model(inputs)[0], model(inputs[:1])[0]
    assert _difference(batched["sem_seg"], alone["sem_seg"]) > 1e-3


def test_size_divisibility_of_another_number(tiny_cfg: CfgNode) -> None:
    # Levels are then padded by different shares of their sizes.
    tiny_cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 0
    model = _build(tiny_cfg)
    inputs = _inputs([(33, 47), (70, 101)])
    with torch.no_grad():
        for ours, entry in zip(model(inputs), inputs, strict=True):
            assert _difference(ours["sem_seg"], model([entry])[0]["sem_seg"]) < 1e-4


def test_training_is_as_without_it(tiny_cfg: CfgNode) -> None:
    inputs = _inputs([(64, 64), (40, 60)])
    for entry in inputs:
        entry["instances"] = Instances(tuple(entry["image"].shape[-2:]))
        entry["instances"].gt_classes = torch.zeros(1, dtype=torch.int64)
        entry["instances"].gt_masks = torch.ones(1, *entry["image"].shape[-2:], dtype=torch.bool)
    losses = []
    for batch_by_size in (False, True):
        model = _build(tiny_cfg, batch_by_size).train()
        torch.manual_seed(0)
        losses.append(model(inputs))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert losses[0].keys() == losses[1].keys()
