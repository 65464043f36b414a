"""Every configuration key that Mask2Former adds to Detectron2's, with its default.

This file is the reference manual: a key that is not here (or in Detectron2's ``defaults.py``) does not exist. Only the
``from_config`` classmethods of the components read keys; everything below them takes plain keyword arguments.

Keys marked "official" exist in the official release with the same default. The others are new, and their default
gives the official behaviour.
"""

import functools
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

__all__ = ["add_maskformer2_config", "find_value"]


def add_maskformer2_config(cfg: CN) -> None:
    """Add Mask2Former's keys to ``cfg`` (as returned by ``detectron2.config.get_cfg()``), in place.

    DeepLab's keys (``INPUT.CROP.SINGLE_CATEGORY_MAX_AREA``, ``SOLVER.POLY_LR_*``, ``MODEL.RESNETS.RES4_DILATION``
    ...) are added too, so one call is all that a script needs. Calling it twice leaves the first call's values alone.
    """
    if "MASK_FORMER" in cfg.MODEL:
        return
    if "SINGLE_CATEGORY_MAX_AREA" not in cfg.INPUT.CROP:  # the official scripts call add_deeplab_config themselves
        add_deeplab_config(cfg)
    _add_pixel_decoder_keys(cfg)
    _add_transformer_decoder_keys(cfg)
    _add_loss_and_test_keys(cfg)
    _add_inference_keys(cfg)
    _add_backbone_keys(cfg)
    _add_data_keys(cfg)
    _add_solver_keys(cfg)


def _add_pixel_decoder_keys(cfg: CN) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    # Channels of the per-pixel embedding, and so of a query's mask embedding (official).
    head.MASK_DIM = 256
    # Layers of the pixel decoder's Transformer encoder; 6 in Mask2Former (official). In MSDeformAttnPixelDecoder it
    # refines several scales together; in the other decoders only the coarsest one, as in MaskFormer. BasePixelDecoder
    # has none.
    head.TRANSFORMER_ENC_LAYERS = 0
    # A name in Detectron2's SEM_SEG_HEADS registry (official). "MSDeformAttnPixelDecoder" is Mask2Former's;
    # "BasePixelDecoder" and "TransformerEncoderPixelDecoder" are MaskFormer's; "FPNPixelDecoder",
    # "SemanticFPNPixelDecoder", "FaPNPixelDecoder" and "BiFPNPixelDecoder", CONVS_DIM wide, are those of Table 4e.
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    # SemanticFPNPixelDecoder: channels of the branch that adds up all scales (128 in its paper); None is CONVS_DIM.
    head.SEMANTIC_FPN_DIM = None
    # BiFPNPixelDecoder: number of passes over the pyramid; EfficientDet's rule gives 8 for 256 channels.
    head.BIFPN_LAYERS = 8
    # Backbone features that enter multi-scale deformable attention, one level each (official).
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Sampling points per head and level (hard-coded to 4 in the official release).
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # Attention heads (official, but MASK_FORMER.NHEADS is used instead there; both are 8 in every official file).
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    # Hidden width of the encoder's feed-forward network (hard-coded to 1024 in the official release).
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024


def _add_transformer_decoder_keys(cfg: CN) -> None:
    cfg.MODEL.MASK_FORMER = CN()
    mask_former = cfg.MODEL.MASK_FORMER
    # A name in the TRANSFORMER_DECODER registry: "MultiScaleMaskedTransformerDecoder" is Mask2Former's,
    # "StandardTransformerDecoder" MaskFormer's (official).
    mask_former.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # What the Transformer decoder attends to: "multi_scale_pixel_decoder" with MultiScaleMaskedTransformerDecoder;
    # "transformer_encoder", "pixel_embedding" or a backbone feature such as "res5" with StandardTransformerDecoder
    # (official).
    mask_former.TRANSFORMER_IN_FEATURE = "res5"
    # Scales of the pixel decoder that the Transformer decoder visits in turn (hard-coded to 3 in the official release).
    mask_former.NUM_FEATURE_LEVELS = 3
    # Queries: the most segments that can be found in one image. PerPixelBaselinePlusHead has one for each class instead
    # (official).
    mask_former.NUM_OBJECT_QUERIES = 100
    # Channels of the queries (official).
    mask_former.HIDDEN_DIM = 256
    # Attention heads, also of a plain Transformer encoder in the pixel decoder (official).
    mask_former.NHEADS = 8
    # Hidden width of the feed-forward networks (official).
    mask_former.DIM_FEEDFORWARD = 2048
    # Self-attention layers on the feature that StandardTransformerDecoder reads (official).
    mask_former.ENC_LAYERS = 0
    # Number of predictions. MultiScaleMaskedTransformerDecoder counts the one from the learnable queries before the
    # first layer, so 10 means nine layers; StandardTransformerDecoder has this many layers (official).
    mask_former.DEC_LAYERS = 6
    # Dropout of the Transformer layers of pixel decoders and of "StandardTransformerDecoder" (official).
    mask_former.DROPOUT = 0.1
    # Normalise before attention and feed-forward network, not after (official). The encoder of MSDeformAttnPixelDecoder
    # always normalises after.
    mask_former.PRE_NORM = False
    # Project features to HIDDEN_DIM even where they already have that many channels (official).
    mask_former.ENFORCE_INPUT_PROJ = False
    # How a decoder layer reads pixels, a name in the CROSS_ATTENTION registry (Table 4c): "MaskedAttentionLayer",
    # "CrossAttentionLayer" (all pixels), "SMCALayer" or "MaskPoolingLayer".
    mask_former.CROSS_ATTENTION_NAME = "MaskedAttentionLayer"
    # Which of the NUM_FEATURE_LEVELS scales the decoder layers read, in this order, 0 being the coarsest; [] is all of
    # them, coarse to fine. With three scales, [2] is the single scale 1/8 (Table 4d).
    mask_former.FEATURE_LEVELS = []
    # "efficient": each layer reads one of these scales, in turn. "naive": every layer reads all of them (Table 4d).
    mask_former.MULTI_SCALE = "efficient"
    # False: queries start at zero, and no prediction is made from them before the first layer (Table 4b).
    mask_former.LEARNABLE_QUERY_FEATURES = True
    # True: self-attention before cross-attention in each layer (Table 4b).
    mask_former.SELF_ATTENTION_FIRST = False
    # Dropout of the Transformer decoder (Table 4b). None is 0 in Mask2Former's, which has none in the official release,
    # and DROPOUT in "StandardTransformerDecoder".
    mask_former.DECODER_DROPOUT = None
    # Images are padded to a multiple of this; a negative value takes the backbone's own (official).
    mask_former.SIZE_DIVISIBILITY = 32


def _add_loss_and_test_keys(cfg: CN) -> None:
    mask_former = cfg.MODEL.MASK_FORMER
    # Compute the training loss for every prediction, not only for the last one (official).
    mask_former.DEEP_SUPERVISION = True
    # Weight of "no object" in the class loss (official).
    mask_former.NO_OBJECT_WEIGHT = 0.1
    # Weight of the class loss, and of class probabilities in the matching cost (official).
    mask_former.CLASS_WEIGHT = 1.0
    # Weight of the dice loss, and of its cost (official).
    mask_former.DICE_WEIGHT = 1.0
    # Weight of the per-pixel mask loss (MASK_LOSS), and of its cost (official).
    mask_former.MASK_WEIGHT = 20.0
    # Number of points in each mask at which the mask losses are computed (official).
    mask_former.TRAIN_NUM_POINTS = 112 * 112
    # Random candidates per point; the most uncertain ones are kept (official).
    mask_former.OVERSAMPLE_RATIO = 3.0
    # Share of TRAIN_NUM_POINTS that is chosen from the candidates; the others are uniformly random (official).
    mask_former.IMPORTANCE_SAMPLE_RATIO = 0.75
    # What the matching cost compares: random "points" (MATCHING_NUM_POINTS), or whole "masks" (Table 5).
    mask_former.MATCHING_COST_ON = "points"
    # What the mask losses compare: "points" (TRAIN_NUM_POINTS), or whole "masks", in three times the memory (Table 5).
    mask_former.MASK_LOSS_ON = "points"
    # Number of points for the matching cost; None takes TRAIN_NUM_POINTS.
    mask_former.MATCHING_NUM_POINTS = None
    # The per-pixel mask loss and matching cost: "cross_entropy", or MaskFormer's "focal".
    mask_former.MASK_LOSS = "cross_entropy"
    # Leave void pixels (ignore label, crowds, padding) out of the mask costs and losses. By default they count as
    # background, as in the official release; the examples for your own data turn this on.
    mask_former.IGNORE_VOID = False
    # Parts that recompute their activations in the backward pass instead of keeping them, which takes less memory and
    # more time: any of "backbone" (ResNet, Swin or timm's ViTs), "pixel_decoder" (if it has an encoder) and
    # "transformer_decoder". torch.compile ignores this and decides by itself what to recompute.
    mask_former.ACTIVATION_CHECKPOINTING = []

    mask_former.TEST = CN()
    # Give semantic results: class scores of every pixel (official).
    mask_former.TEST.SEMANTIC_ON = True
    # Give instances (official).
    mask_former.TEST.INSTANCE_ON = False
    # Give panoptic segments (official).
    mask_former.TEST.PANOPTIC_ON = False
    # Panoptic: a query below this class probability is dropped (official).
    mask_former.TEST.OBJECT_MASK_THRESHOLD = 0.0
    # Panoptic: a segment is dropped if less than this share of its mask is left after overlaps are resolved (official).
    mask_former.TEST.OVERLAP_THRESHOLD = 0.0
    # Semantic: resize mask logits to the output size before classes and masks are combined, not after. Always done when
    # instance or panoptic results are turned on (official).
    mask_former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    # Images larger than this (in pixels of the network's input, after resizing) are segmented in square tiles of this
    # side, and segments are joined across the seams; 0 turns tiles off. A multiple of 32, as is the overlap.
    mask_former.TEST.TILE_SIZE = 0
    # Smallest overlap of tiles: larger than most objects, at most half a tile.
    mask_former.TEST.TILE_OVERLAP = 0
    # Make each connected region of a thing's mask an instance of its own, in panoptic and instance results: for cells
    # and other things that are always in one piece.
    mask_former.TEST.SPLIT_DISCONNECTED_THINGS = False
    # Run images of different sizes separately, so that results do not depend on the batch. Otherwise images are padded
    # to the largest of the batch, as in the official release, and padding affects convolutions, norms and attention.
    mask_former.TEST.BATCH_BY_SIZE = False


def _add_inference_keys(cfg: CN) -> None:
    """How fast a trained model runs (docs/performance.md); training and the evaluations during it ignore these keys."""
    cfg.MODEL.INFERENCE = CN()
    # Fold batch norms into convolutions and make layers faster: the same results up to float32's rounding. None turns
    # this on for CPUs and NVIDIA's GPUs in mask2former.load, `mask2former predict` and the demo, except for subclasses
    # of MaskFormer, and off in evaluations. Always on if DTYPE or COMPILE is not the default.
    cfg.MODEL.INFERENCE.OPTIMIZE = None
    # "bfloat16" computes convolutions and matrix products in that type: for GPUs, and CPUs with AMX or AVX512_BF16.
    cfg.MODEL.INFERENCE.DTYPE = "float32"
    # "default" or "reduce-overhead" compile backbone and head by torch.compile at the first image; the latter, for
    # GPUs, records a CUDA graph for each image size, of which there should be few.
    cfg.MODEL.INFERENCE.COMPILE = "none"
    # On NVIDIA's GPUs, where the model is optimised but not compiled, record a CUDA graph for each image size that
    # comes often, because launching its kernels one by one takes longer than running them.
    cfg.MODEL.INFERENCE.CUDA_GRAPHS = True
    # On a CPU with glibc: never return freed memory to the system, because getting it back is slow. Affects the whole
    # process.
    cfg.MODEL.INFERENCE.KEEP_MEMORY = False


def _add_backbone_keys(cfg: CN) -> None:
    # D2SwinTransformer (all official).
    cfg.MODEL.SWIN = CN()
    # Side of the pre-training's images, which fixes the size of the absolute position embedding (APE).
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 224
    # Side of a patch in pixels.
    cfg.MODEL.SWIN.PATCH_SIZE = 4
    # Channels of the first stage; each further one has twice as many.
    cfg.MODEL.SWIN.EMBED_DIM = 96
    # Blocks of each stage.
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    # Attention heads of each stage.
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # Side of a window in patches.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Hidden width of the feed-forward networks, relative to the stage's channels.
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    # Biases for queries, keys and values.
    cfg.MODEL.SWIN.QKV_BIAS = True
    # Factor of the attention logits; None is 1 / sqrt(channels of a head).
    cfg.MODEL.SWIN.QK_SCALE = None
    # Dropout of embeddings and feed-forward networks.
    cfg.MODEL.SWIN.DROP_RATE = 0.0
    # Dropout of attention weights.
    cfg.MODEL.SWIN.ATTN_DROP_RATE = 0.0
    # Stochastic depth of the last block; earlier ones have less, in proportion.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    # Absolute position embedding.
    cfg.MODEL.SWIN.APE = False
    # A layer norm after the patch embedding.
    cfg.MODEL.SWIN.PATCH_NORM = True
    # Features to return.
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute blocks in the backward pass, to save memory.
    cfg.MODEL.SWIN.USE_CHECKPOINT = False

    # TimmBackbone: any timm model with `features_only` that takes images of any size, as a Detectron2 backbone (needs
    # the extra "timm"). Plain ViTs, such as DINOv2's and DINOv3's, get patches of 16 pixels and ViTDet's feature
    # pyramid.
    cfg.MODEL.TIMM = CN()
    # A name in timm.list_models(); MODEL.WEIGHTS names pretrained weights, as for every other backbone.
    cfg.MODEL.TIMM.MODEL_NAME = "tf_efficientnet_lite0"
    # Of "res2" (stride 4), "res3" (8), "res4" (16), "res5" (32); what is not listed is not computed.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # "BN" trains the batch norms, "FrozenBN" fixes statistics and affine parameters, "SyncBN" shares statistics.
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    # Stochastic depth, for the architectures that have it.
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0


def _add_data_keys(cfg: CN) -> None:
    # "mask_former_semantic", "mask_former_instance", "mask_former_panoptic", "coco_instance_lsj", "coco_panoptic_lsj"
    # (official), "coco_semantic_lsj".
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Colour jitter of the SSD paper (official, but not read by the coco_*_lsj mappers there).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Pad training images of the mask_former_* mappers to a multiple of this; -1 does not (official).
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Side of the training crops of the coco_*_lsj mappers (large-scale jittering), which resize an image by a random
    # factor between MIN_SCALE and MAX_SCALE, then crop or pad it to this square (official).
    cfg.INPUT.IMAGE_SIZE = 1024
    # The smallest factor (official).
    cfg.INPUT.MIN_SCALE = 0.1
    # The largest factor (official).
    cfg.INPUT.MAX_SCALE = 2.0

    # What this factor multiplies: with "crop" the size of the image after it was fitted into IMAGE_SIZE, as in the
    # official release; with "image" its own size, if the size of a pixel has a meaning (microscopes).
    cfg.INPUT.SCALE_REFERENCE = "crop"
    # Rotate training images by a random multiple of 90 degrees.
    cfg.INPUT.RANDOM_QUARTER_TURN = False
    # Raise the intensities of training images to a random power between 1 / (1 + this) and 1 + this.
    cfg.INPUT.RANDOM_GAMMA = 0.0
    # Probability of inverting the intensities of a training image.
    cfg.INPUT.RANDOM_INVERT = 0.0
    # Above 0, test images are resized by this factor, and MIN_SIZE_TEST and MAX_SIZE_TEST are not read.
    cfg.INPUT.TEST_SCALE = 0.0

    # Your own data: an entry for each data set, {name: {FORMAT: ..., IMAGES: ..., ...}}; see datasets/README.md.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)


def _add_solver_keys(cfg: CN) -> None:
    # "ADAMW" or "SGD" (official).
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to BASE_LR (official).
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of nn.Embedding layers, such as the queries (official).
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Autocast type when SOLVER.AMP.ENABLED: "float16" (with loss scaling), "bfloat16", or "auto": float16 on a GPU, as
    # in the official release; on a CPU bfloat16 if it has units for it, else float32.
    cfg.SOLVER.AMP.DTYPE = "auto"
    # Micro-batches that IMS_PER_BATCH is divided into; their gradients are averaged before the optimizer's step.
    cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS = 1
    # On a GPU, record the network's forward and backward pass as CUDA graphs, because launching their kernels one by
    # one takes longer than running them. For batches of at most four sizes; not with FSDP or activation checkpointing,
    # nor of a network that waits for the GPU, of which a warning tells.
    cfg.SOLVER.CUDA_GRAPHS = False
    # Steps with infinite or NaN losses or gradients are skipped with a warning and counted (skipped_steps in the
    # metrics). If more than this many are skipped in a row, the run ends with an error; 0 ends it at the first.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10

    cfg.SOLVER.DDP = CN()
    # Promise that the same parameters get gradients in every step, so that DDP looks up in the first which do. Without
    # it, all must get one.
    cfg.SOLVER.DDP.STATIC_GRAPH = False
    # Type in which gradients are sent between processes: "none" is their own, "bfloat16" or "float16" take half as many
    # bytes. float16 overflows above 65504.
    cfg.SOLVER.DDP.COMPRESSION = "none"
    cfg.SOLVER.FSDP = CN()
    # Shard parameters, gradients and optimizer state over the processes (FSDP2), for models that are too large for one.
    # Results and checkpoints are the same.
    cfg.SOLVER.FSDP.ENABLED = False
    # Blocks and layers with at least this many parameters are gathered one by one, the rest with the whole model.
    cfg.SOLVER.FSDP.UNIT_PARAMETERS = 100_000
    # "bfloat16" gathers and computes with parameters of that type; the optimizer's stay float32. Needs AMP.
    cfg.SOLVER.FSDP.PARAM_DTYPE = "float32"
    # Type in which gradients are sent: "float32" or "bfloat16".
    cfg.SOLVER.FSDP.REDUCE_DTYPE = "float32"

    # Test-time augmentation for images of various sizes: if not empty, the views are the test image resized by these
    # factors, in place of Detectron2's MIN_SIZES and MAX_SIZE.
    cfg.TEST.AUG.SCALES = []
    # Also report boundary AP, by the smaller of mask IoU and boundary IoU, for instances in COCO's format.
    cfg.TEST.BOUNDARY_AP = False
    # Also report the PQ of semantic results, where each class in an image is one segment (MaskFormer's PQ^St).
    cfg.TEST.SEMANTIC_PQ = False
    # What computes AP and PQ: "hotcoco", or "reference" (pycocotools and panopticapi), with the same results; "auto"
    # is hotcoco if it is installed.
    cfg.TEST.EVALUATION_BACKEND = "auto"
    cfg.TEST.BEST_CHECKPOINT = CN()
    # Keep the checkpoint whose evaluation during training had the best METRIC, as model_best.pth.
    cfg.TEST.BEST_CHECKPOINT.ENABLED = False
    # The task and the metric, as the evaluation prints them.
    cfg.TEST.BEST_CHECKPOINT.METRIC = "panoptic_seg/PQ"
    # "max" or "min": whether the highest or the lowest value is best.
    cfg.TEST.BEST_CHECKPOINT.MODE = "max"
    cfg.TEST.EARLY_STOPPING = CN()
    # Stop the training when BEST_CHECKPOINT.METRIC has not improved for this many evaluations in a row; 0 never does.
    cfg.TEST.EARLY_STOPPING.PATIENCE = 0
    # Images in each set of sample predictions for TensorBoard; Detectron2's VIS_PERIOD says how often.
    cfg.TEST.VIS_IMAGES = 4

    cfg.LOGGING = CN()
    cfg.LOGGING.WANDB = CN()
    # Log the training to this project of Weights & Biases too (needs the extra "wandb"); "" does not.
    cfg.LOGGING.WANDB.PROJECT = ""


def find_value(cfg: CN, key: str) -> Any:
    """The value of a key such as "SOLVER.BASE_LR"."""
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)
