"""The per-pixel heads: the loss against loops over pixels, and both inside Detectron2's SemanticSegmentor."""

import math
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.checkpoint_compat import convert_checkpoint

SHAPES = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in (2, 3, 4, 5)}
IGNORE = 255


@pytest.fixture
def baseline_cfg(tiny_v1_cfg: CfgNode) -> CfgNode:
    tiny_v1_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    tiny_v1_cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselineHead"
    return tiny_v1_cfg


@pytest.fixture
def plus_cfg(baseline_cfg: CfgNode) -> CfgNode:
    baseline_cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselinePlusHead"
    baseline_cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 3
    return baseline_cfg


def features(count: int = 2) -> dict[str, Tensor]:
    sizes = {name: math.ceil(64 / spec.stride) for name, spec in SHAPES.items()}
    return {name: torch.randn(count, SHAPES[name].channels, size, size) for name, size in sizes.items()}


def semantic_map(height: int, width: int) -> Tensor:
    targets = torch.randint(0, 3, (height, width))
    targets[: height // 3] = IGNORE
    return targets


def cross_entropy_in_loops(logits: Tensor, targets: Tensor, stride: int, ignore: int) -> float:
    """Minus the mean log-probability of the right class, at logits between the four nearest ones."""

    def sample(channel: Tensor, y: float, x: float) -> float:
        y, x = (min(max(v, 0.0), n - 1.0) for v, n in zip((y, x), channel.shape, strict=True))
        top, left = int(y), int(x)
        bottom, right = min(top + 1, channel.shape[0] - 1), min(left + 1, channel.shape[1] - 1)
        upper = float(channel[top, left]) * (1 - x + left) + float(channel[top, right]) * (x - left)
        lower = float(channel[bottom, left]) * (1 - x + left) + float(channel[bottom, right]) * (x - left)
        return upper * (1 - y + top) + lower * (y - top)

    total, count = 0.0, 0
    for image, labels in zip(logits, targets, strict=True):
        for row in range(labels.shape[0]):
            for column in range(labels.shape[1]):
                label = int(labels[row, column])
                if label != ignore:
                    scores = [sample(c, (row + 0.5) / stride - 0.5, (column + 0.5) / stride - 0.5) for c in image]
                    total += math.log(sum(math.exp(s) for s in scores)) - scores[label]
                    count += 1
    return total / count


@pytest.mark.parametrize(("height", "width"), [(16, 12), (14, 9)])
def test_the_loss_is_the_mean_cross_entropy_of_labelled_pixels(baseline_cfg: CfgNode, height: int, width: int) -> None:
    baseline_cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT = 0.5
    baseline_cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 7
    head = build_sem_seg_head(baseline_cfg, SHAPES)
    logits = torch.randn(2, 3, math.ceil(height / 4), math.ceil(width / 4))
    targets = torch.stack([semantic_map(height, width) for _ in range(2)])
    targets[targets == IGNORE] = 7
    expected = 0.5 * cross_entropy_in_loops(logits, targets, stride=4, ignore=7)
    assert head.loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_a_void_crop_teaches_nothing(baseline_cfg: CfgNode) -> None:
    head = build_sem_seg_head(baseline_cfg, SHAPES)
    _, losses = head(features(), torch.full((2, 64, 64), IGNORE))
    assert losses["loss_sem_seg"].item() == 0
    losses["loss_sem_seg"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_logits_are_a_linear_map_of_the_embedding_and_enlarged(baseline_cfg: CfgNode) -> None:
    head, given = build_sem_seg_head(baseline_cfg, SHAPES).eval(), features()
    logits, losses = head(given)
    embedding = head.pixel_decoder.forward_features(given)[0]
    expected = torch.einsum("kc,nchw->nkhw", head.predictor.weight[:, :, 0, 0], embedding)
    expected = expected + head.predictor.bias[:, None, None]
    torch.testing.assert_close(logits, F.interpolate(expected, size=(64, 64), mode="bilinear"))
    assert losses == {}


def test_logits_of_the_plus_head_are_its_queries_masks(plus_cfg: CfgNode) -> None:
    head, given = build_sem_seg_head(plus_cfg, SHAPES).eval(), features()
    embedding = head.pixel_decoder.forward_features(given)[0]
    masks = head.predictor(given["res5"], embedding)["pred_masks"]
    torch.testing.assert_close(head(given)[0], F.interpolate(masks, size=(64, 64), mode="bilinear"))
    assert not any("class_embed" in name for name in head.state_dict())


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_every_layer_of_the_plus_head_learns(plus_cfg: CfgNode, deep_supervision: bool) -> None:
    plus_cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = deep_supervision
    head = build_sem_seg_head(plus_cfg, SHAPES)
    given, targets = features(), torch.stack([semantic_map(64, 64) for _ in range(2)])
    logits, losses = head(given, targets)
    assert logits is None
    auxiliary = {"loss_sem_seg_0", "loss_sem_seg_1"} if deep_supervision else set()
    assert set(losses) == {"loss_sem_seg"} | auxiliary
    predictions = head.predictor(given["res5"], head.pixel_decoder.forward_features(given)[0])
    assert torch.equal(losses["loss_sem_seg"], head.loss(predictions["pred_masks"], targets))
    for index, earlier in enumerate(predictions.get("aux_outputs", [])):
        assert torch.equal(losses[f"loss_sem_seg_{index}"], head.loss(earlier["pred_masks"], targets))


@pytest.mark.parametrize("pixel_decoder", ["MSDeformAttnPixelDecoder", "TransformerEncoderPixelDecoder"])
def test_the_plus_head_with_what_other_pixel_decoders_encode(plus_cfg: CfgNode, pixel_decoder: str) -> None:
    plus_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = pixel_decoder
    plus_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "transformer_encoder"
    assert build_sem_seg_head(plus_cfg, SHAPES).eval()(features())[0].shape == (2, 3, 64, 64)


@pytest.mark.parametrize("name", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_inside_the_semantic_segmentor(plus_cfg: CfgNode, name: str) -> None:
    plus_cfg.MODEL.SEM_SEG_HEAD.NAME = name
    model = build_model(plus_cfg)
    batch: list[dict[str, Any]] = [
        {"image": torch.rand(3, h, w) * 255, "sem_seg": semantic_map(h, w)} for h, w in [(50, 61), (33, 64)]
    ]
    losses = model.train()(batch)
    assert all(torch.isfinite(value) for value in losses.values())

    result = model.eval()([{"image": batch[0]["image"], "height": 100, "width": 122}])[0]["sem_seg"]
    image = (batch[0]["image"] - model.pixel_mean) / model.pixel_std
    logits = model.sem_seg_head(model.backbone(image[None]))[0][0]
    assert logits.shape == (3, 52, 64)
    torch.testing.assert_close(result, sem_seg_postprocess(logits, (50, 61), 100, 122))


def test_a_few_steps_learn_a_picture(plus_cfg: CfgNode) -> None:
    head = build_sem_seg_head(plus_cfg, SHAPES).train()
    targets = torch.zeros(1, 64, 64, dtype=torch.int64)
    targets[:, :, 32:], targets[:, 40:] = 1, 2
    given = features(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=4e-3)
    history = []
    for _ in range(15):
        loss = sum(head(given, targets)[1].values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.2 * history[0]


def test_another_stride(baseline_cfg: CfgNode) -> None:
    head_cfg = baseline_cfg.MODEL.SEM_SEG_HEAD
    head_cfg.COMMON_STRIDE = 8
    with pytest.raises(ValueError, match=r"COMMON_STRIDE is 8, but the finest of .* is at stride 4"):
        build_sem_seg_head(baseline_cfg, SHAPES)
    head_cfg.IN_FEATURES = ["res3", "res4", "res5"]
    assert build_sem_seg_head(baseline_cfg, SHAPES).eval()(features())[0].shape == (2, 3, 64, 64)


def test_as_many_queries_as_classes(plus_cfg: CfgNode) -> None:
    plus_cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    with pytest.raises(ValueError, match=r"one query for each class, but .* is 100 and .* is 3"):
        build_sem_seg_head(plus_cfg, SHAPES)


def test_a_batch_without_semantic_maps(baseline_cfg: CfgNode) -> None:
    model = build_model(baseline_cfg).train()
    with pytest.raises(ValueError, match=r'the batch has no "sem_seg"; set INPUT'):
        model([{"image": torch.rand(3, 32, 32)}])


@pytest.mark.parametrize("name", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_older_names_load(plus_cfg: CfgNode, name: str) -> None:
    plus_cfg.MODEL.SEM_SEG_HEAD.NAME = name
    plus_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    old, new = (nn.ModuleDict({"sem_seg_head": build_sem_seg_head(plus_cfg, SHAPES)}) for _ in range(2))
    older = {key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for key, v in old.state_dict().items()}
    assert "sem_seg_head.transformer.encoder.layers.0.norm1.weight" in older
    assert convert_checkpoint(older, new.state_dict()).keys() == new.state_dict().keys()
    new.load_state_dict(older)
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())


@pytest.mark.parametrize("name", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_present_names_stay(plus_cfg: CfgNode, name: str) -> None:
    plus_cfg.MODEL.SEM_SEG_HEAD.NAME = name
    head = nn.ModuleDict({"sem_seg_head": build_sem_seg_head(plus_cfg, SHAPES)})
    state = head.state_dict()
    assert convert_checkpoint(state, state).keys() == state.keys()
    head.load_state_dict(state)
