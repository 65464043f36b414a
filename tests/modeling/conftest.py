"""Small models for the tests of the model."""

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from mask2former import add_maskformer2_config

TOY_DATASET = "tests_modeling_toy"


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """See :func:`make_tiny_cfg`."""
    return make_tiny_cfg()


def make_tiny_cfg() -> CfgNode:
    """A model of the paper's structure, a few hundred times smaller, for three classes, two of them things."""
    MetadataCatalog.get(TOY_DATASET).thing_dataset_id_to_contiguous_id = {1: 0, 2: 1}
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.DATASETS.TRAIN = (TOY_DATASET,)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_STD = [58.0, 57.0, 57.0]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "MaskFormerHead"
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.NUM_CLASSES = 3
    head.CONVS_DIM = head.MASK_DIM = 64  # GroupNorm of a single pixel needs two channels a group
    head.TRANSFORMER_ENC_LAYERS = 1
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 64
    mask_former = cfg.MODEL.MASK_FORMER
    mask_former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    mask_former.HIDDEN_DIM = 32
    mask_former.NHEADS = 4
    mask_former.DIM_FEEDFORWARD = 64
    mask_former.DEC_LAYERS = 4
    mask_former.DROPOUT = 0.0
    mask_former.NUM_OBJECT_QUERIES = 10
    mask_former.TRAIN_NUM_POINTS = 256
    mask_former.CLASS_WEIGHT, mask_former.MASK_WEIGHT, mask_former.DICE_WEIGHT = 2.0, 5.0, 5.0
    mask_former.TEST.INSTANCE_ON = mask_former.TEST.PANOPTIC_ON = True
    return cfg


@pytest.fixture
def tiny_v1_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """MaskFormer's older structure, as small: a feature pyramid, and DETR's decoder on the coarsest feature."""
    tiny_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "BasePixelDecoder"
    tiny_cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    tiny_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res5"
    tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS = 3
    resnet = tiny_cfg.MODEL.RESNETS
    resnet.DEPTH, resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS, resnet.WIDTH_PER_GROUP = 50, 8, 16, 4
    return tiny_cfg
