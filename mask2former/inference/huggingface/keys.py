"""Settings of Hugging Face's ``Mask2FormerConfig`` and our keys."""

from typing import Any

__all__ = [
    "DEFAULTS",
    "FIXED",
    "FIXED_RESNET",
    "FIXED_SWIN",
    "HEAD_KEYS",
    "MASK_FORMER_KEYS",
    "RESNET_DEPTHS",
    "SWIN_KEYS",
]

STAGES = ["res2", "res3", "res4", "res5"]

# Theirs to ours, below MODEL.SEM_SEG_HEAD.
HEAD_KEYS = {
    "feature_size": "CONVS_DIM",
    "mask_feature_size": "MASK_DIM",
    "encoder_layers": "TRANSFORMER_ENC_LAYERS",
    "encoder_feedforward_dim": "DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD",
    "num_attention_heads": "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
    "common_stride": "COMMON_STRIDE",
}
# Below MODEL.MASK_FORMER. Their decoder's number of layers counts predictions, as ours does.
MASK_FORMER_KEYS = {
    "hidden_dim": "HIDDEN_DIM",
    "num_attention_heads": "NHEADS",
    "dim_feedforward": "DIM_FEEDFORWARD",
    "decoder_layers": "DEC_LAYERS",
    "num_queries": "NUM_OBJECT_QUERIES",
    "dropout": "DROPOUT",
    "pre_norm": "PRE_NORM",
    "enforce_input_projection": "ENFORCE_INPUT_PROJ",
    "no_object_weight": "NO_OBJECT_WEIGHT",
    "class_weight": "CLASS_WEIGHT",
    "mask_weight": "MASK_WEIGHT",
    "dice_weight": "DICE_WEIGHT",
    "train_num_points": "TRAIN_NUM_POINTS",
    "oversample_ratio": "OVERSAMPLE_RATIO",
    "importance_sample_ratio": "IMPORTANCE_SAMPLE_RATIO",
    "use_auxiliary_loss": "DEEP_SUPERVISION",
}
# Below MODEL.SWIN, in capitals there.
SWIN_KEYS = (
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "qkv_bias",
    "patch_size",
    "drop_path_rate",
)
RESNET_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
# Their files leave out what is at its default.
DEFAULTS: dict[str, Any] = {
    "feature_size": 256,
    "mask_feature_size": 256,
    "encoder_layers": 6,
    "encoder_feedforward_dim": 1024,
    "num_attention_heads": 8,
    "common_stride": 4,
    "hidden_dim": 256,
    "dim_feedforward": 2048,
    "decoder_layers": 10,
    "num_queries": 100,
    "dropout": 0.0,
    "pre_norm": False,
    "enforce_input_projection": False,
    "no_object_weight": 0.1,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "train_num_points": 12544,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
    "use_auxiliary_loss": True,
    "backbone_config": {"model_type": "swin", "depths": [2, 2, 18, 2]},
}
# What theirs always is, in our keys.
FIXED: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "INPUT.TEST_SCALE": 0.0,
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": STAGES,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": STAGES[1:],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.NUM_FEATURE_LEVELS": 3,
    "MODEL.MASK_FORMER.CROSS_ATTENTION_NAME": "MaskedAttentionLayer",
    "MODEL.MASK_FORMER.FEATURE_LEVELS": [],
    "MODEL.MASK_FORMER.MULTI_SCALE": "efficient",
    "MODEL.MASK_FORMER.LEARNABLE_QUERY_FEATURES": True,
    "MODEL.MASK_FORMER.SELF_ATTENTION_FIRST": False,
}
FIXED_SWIN: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.QK_SCALE": None,
    "MODEL.SWIN.APE": False,
    "MODEL.SWIN.PATCH_NORM": True,
    "MODEL.SWIN.OUT_FEATURES": STAGES,
}
FIXED_RESNET: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.STEM_TYPE": "basic",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
}
