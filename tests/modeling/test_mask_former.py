"""The whole model, tiny: batches, sizes, numbers of classes and queries, errors."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor


def _training_input(height: int, width: int, count: int) -> dict[str, Any]:
    instances = Instances((height, width))
    instances.gt_classes = torch.zeros(count, dtype=torch.int64)
    instances.gt_masks = torch.rand(count, height, width) > 0.5
    return {"image": torch.rand(3, height, width) * 255, "instances": instances}


def test_batched_equals_single(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    images = [torch.rand(3, 64, 96) * 255 for _ in range(2)]
    with torch.no_grad():
        batched = model([{"image": image} for image in images])
        singles = [model([{"image": image}])[0] for image in images]
    for both, one in zip(batched, singles, strict=True):
        assert torch.allclose(both["sem_seg"], one["sem_seg"], atol=1e-4)
        assert both["panoptic_seg"][1] == one["panoptic_seg"][1]


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (95, 32)])
def test_odd_sizes(tiny_cfg: CfgNode, height: int, width: int) -> None:
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        result = model([{"image": torch.rand(3, height, width) * 255, "height": 41, "width": 50}])[0]
    assert result["sem_seg"].shape == (3, 41, 50)
    assert result["panoptic_seg"][0].shape == (41, 50)
    assert result["instances"].pred_masks.shape[1:] == (41, 50)


@pytest.mark.parametrize(("classes", "queries"), [(1, 10), (3, 300)])
def test_one_class_and_many_queries_train(tiny_cfg: CfgNode, classes: int, queries: int) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    tiny_cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = queries
    tiny_cfg.MODEL.MASK_FORMER.IGNORE_VOID = True
    model = build_model(tiny_cfg).train()
    losses: dict[str, Tensor] = model([_training_input(64, 64, 4), _training_input(50, 40, 0)])
    assert len(losses) == 3 * tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_without_deep_supervision_no_auxiliary_loss(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    losses = build_model(tiny_cfg).train()([_training_input(64, 64, 2)])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_image_of_wrong_shape_is_named(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    with pytest.raises(ValueError, match=r"gray.png has shape \(1, 8, 8\), expected \(3, H, W\)"):
        model([{"image": torch.zeros(1, 8, 8), "file_name": "gray.png"}])


def test_features_that_do_not_exist_are_named(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res6"]
    with pytest.raises(ValueError, match=r"names \['res6'\], but the backbone gives"):
        build_model(tiny_cfg)
