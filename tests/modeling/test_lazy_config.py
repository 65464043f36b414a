"""A model as Detectron2's LazyConfig files describe it, by the arguments that the official release's classes have."""

from typing import Any

import torch
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.structures import Instances
from omegaconf import DictConfig

from mask2former import MaskFormer
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.head import MaskFormerHead
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder

WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


def lazy_model() -> DictConfig:
    features = ["res2", "res3", "res4", "res5"]
    input_shape = {name: ShapeSpec(channels=64 * 2**i, stride=4 * 2**i) for i, name in enumerate(features)}
    pixel_decoder = LazyCall(MSDeformAttnPixelDecoder)(
        input_shape=input_shape,
        transformer_dropout=0.0,
        transformer_nheads=4,
        transformer_dim_feedforward=32,
        transformer_enc_layers=1,
        conv_dim=32,
        mask_dim=16,
        norm="GN",
        transformer_in_features=features[1:],
        common_stride=4,
    )
    predictor = LazyCall(MultiScaleMaskedTransformerDecoder)(
        in_channels="${..pixel_decoder.conv_dim}",
        mask_classification=True,
        num_classes="${..num_classes}",
        hidden_dim=32,
        num_queries="${...num_queries}",
        nheads=4,
        dim_feedforward=32,
        dec_layers=2,
        pre_norm=False,
        mask_dim="${..pixel_decoder.mask_dim}",
        enforce_input_project=False,
    )
    return LazyCall(MaskFormer)(
        backbone=LazyCall(ResNet)(
            stem=LazyCall(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=LazyCall(ResNet.make_default_stages)(depth=18, norm="FrozenBN"),
            out_features=features,
        ),
        sem_seg_head=LazyCall(MaskFormerHead)(
            input_shape=input_shape,
            num_classes=3,
            pixel_decoder=pixel_decoder,
            loss_weight=1.0,
            ignore_value=255,
            transformer_predictor=predictor,
            transformer_in_feature="multi_scale_pixel_decoder",
        ),
        criterion=LazyCall(SetCriterion)(
            num_classes="${..sem_seg_head.num_classes}",
            matcher=LazyCall(HungarianMatcher)(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=64),
            weight_dict=WEIGHTS | {f"{name}_{layer}": weight for layer in range(2) for name, weight in WEIGHTS.items()},
            eos_coef=0.1,
            losses=["labels", "masks"],
            num_points=64,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
        ),
        num_queries=5,
        object_mask_threshold=0.0,
        overlap_threshold=0.0,
        metadata=None,
        size_divisibility=32,
        sem_seg_postprocess_before_inference=True,
        pixel_mean=[123.675, 116.280, 103.530],
        pixel_std=[58.395, 57.120, 57.375],
        semantic_on=True,
        panoptic_on=False,
        instance_on=True,
        test_topk_per_image=10,
    )


def test_it_trains_and_predicts() -> None:
    model: Any = instantiate(lazy_model())
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    targets = Instances((64, 96), gt_classes=torch.tensor([2]), gt_masks=torch.ones(1, 64, 96, dtype=torch.bool))
    losses = model.train()([{"image": image, "instances": targets}])
    assert len(losses) == 9
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.sem_seg_head.parameters())

    with torch.no_grad():
        (result,) = model.eval()([{"image": image, "height": 32, "width": 48}])
    assert result["sem_seg"].shape == (3, 32, 48)
    assert len(result["instances"]) == 10
