"""Small models of the same structure, ours and transformers'."""

from collections.abc import Sequence
from typing import Any

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from mask2former import add_maskformer2_config

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def our_model(backbone: str, opts: Sequence[object] = ()) -> Any:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    if backbone == "swin":
        cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
        cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.WINDOW_SIZE = 12, 2
        cfg.MODEL.SWIN.DEPTHS, cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 2, 1], [1, 2, 3, 4]
    else:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.NAME, head.PIXEL_DECODER_NAME = "MaskFormerHead", "MSDeformAttnPixelDecoder"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.NUM_CLASSES, head.CONVS_DIM, head.MASK_DIM, head.NORM = 5, 32, 48, "GN"
    head.TRANSFORMER_ENC_LAYERS, head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 2, 40
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = mask_former.NHEADS = 4
    mask_former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    mask_former.HIDDEN_DIM, mask_former.DIM_FEEDFORWARD, mask_former.DEC_LAYERS = 32, 64, 5
    mask_former.NUM_OBJECT_QUERIES, mask_former.DROPOUT = 7, 0.0
    cfg.merge_from_list(list(opts))
    return build_model(cfg).eval()


def their_model(backbone: str, **options: object) -> Any:
    transformers = pytest.importorskip("transformers")
    if backbone == "swin":
        encoder = transformers.SwinConfig(
            embed_dim=12, window_size=2, depths=[1, 2, 2, 1], num_heads=[1, 2, 3, 4], out_features=STAGES
        )
    else:
        encoder = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3], out_features=STAGES
        )
    structure = {
        "feature_size": 32,
        "mask_feature_size": 48,
        "hidden_dim": 32,
        "encoder_layers": 2,
        "encoder_feedforward_dim": 40,
        "decoder_layers": 5,
        "dim_feedforward": 64,
        "num_attention_heads": 4,
        "num_queries": 7,
        "num_labels": 5,
    }
    config = transformers.Mask2FormerConfig(backbone_config=encoder, **(structure | options))
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    # Which is a plain list before transformers 5.23, whose layers are neither trained nor saved.
    model.model.transformer_module.input_projections = nn.ModuleList(model.model.transformer_module.input_projections)
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Random weights, for which every layer matters and attention masks are neither full nor empty."""
    for name, parameter in model.named_parameters():
        std = 0.1 if parameter.dim() < 2 else (1.4 if parameter.dim() == 4 else 1.0) / parameter[0].numel() ** 0.5
        if "quer" in name or "level_embed" in name:
            std = 1.0
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1 and name.endswith("weight")), std=std)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
