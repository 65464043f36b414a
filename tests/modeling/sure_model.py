"""A tiny model that random weights make sure enough for results of every kind, a batch, and ways to run it."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former.modeling.mask_former import MaskFormer
from mask2former.structures import SegmentMasks

__all__ = ["INFERENCE", "SWIN", "build", "make_batch", "total_loss"]

# Changes of the configuration below MODEL; {} is the model as it is.
SWIN: dict[str, Any] = {
    "BACKBONE.NAME": "D2SwinTransformer",
    "SWIN.EMBED_DIM": 16,
    "SWIN.DEPTHS": [2, 2, 1, 1],
    "SWIN.NUM_HEADS": [1, 2, 2, 4],
    "SWIN.DROP_PATH_RATE": 0.0,
}
INFERENCE: dict[str, dict[str, Any]] = {
    "plain": {},
    "by size": {"MASK_FORMER.TEST.BATCH_BY_SIZE": True},
    "tiles": {"MASK_FORMER.TEST.TILE_SIZE": 64, "MASK_FORMER.TEST.TILE_OVERLAP": 32},
    "split things": {"MASK_FORMER.TEST.SPLIT_DISCONNECTED_THINGS": True},
}


def build(cfg: CfgNode, changes: dict[str, Any]) -> MaskFormer:
    torch.manual_seed(0)
    cfg = cfg.clone()
    cfg.defrost()
    for name, value in changes.items():
        cfg.merge_from_list([f"MODEL.{name}", value])
    # Random weights are sure of nothing, and everything has to take part.
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    model: MaskFormer = build_model(cfg)
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.weight.normal_()
        model.sem_seg_head.predictor.class_embed.bias[-1] = -100  # "no object"
    return model


def make_batch() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    batch = []
    for height, width, targets in ((64, 96, 3), (80, 64, 0), (64, 96, 5)):
        instances = Instances((height, width))
        instances.gt_classes = torch.arange(targets) % 3
        if targets == 5:  # as panoptic mappers give them
            id_map = torch.randint(0, 6, (height, width), generator=generator, dtype=torch.uint8)
            instances.gt_masks = SegmentMasks(id_map, torch.arange(1, 6, dtype=torch.uint8))
        else:
            instances.gt_masks = torch.rand(targets, height, width, generator=generator) > 0.5
        batch.append(
            {
                "image": torch.randint(0, 256, (3, height, width), generator=generator).float(),
                "height": 50,
                "width": 70,
                "instances": instances,
                "ignore_mask": torch.rand(height, width, generator=generator) > 0.8,
            }
        )
    return batch


def total_loss(model: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    return torch.stack(list(model(batch).values())).sum()
