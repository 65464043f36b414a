"""Imports that programs of the official release have."""

from importlib import import_module

import pytest

import train_net
from mask2former._official_modules import OFFICIAL_MODULES

DATA = "mask2former.data.dataset_mappers"
NAMES = {
    "mask2former.maskformer_model": ["MaskFormer"],
    "mask2former.test_time_augmentation": ["SemanticSegmentorWithTTA"],
    f"{DATA}.coco_instance_new_baseline_dataset_mapper": [
        "COCOInstanceNewBaselineDatasetMapper",
        "build_transform_gen",
    ],
    f"{DATA}.coco_panoptic_new_baseline_dataset_mapper": [
        "COCOPanopticNewBaselineDatasetMapper",
        "build_transform_gen",
    ],
    f"{DATA}.mask_former_instance_dataset_mapper": ["MaskFormerInstanceDatasetMapper"],
    f"{DATA}.mask_former_panoptic_dataset_mapper": ["MaskFormerPanopticDatasetMapper"],
    f"{DATA}.mask_former_semantic_dataset_mapper": ["MaskFormerSemanticDatasetMapper"],
    "mask2former.evaluation.instance_evaluation": ["InstanceSegEvaluator"],
    "mask2former.modeling.backbone.swin": ["D2SwinTransformer"],
    "mask2former.modeling.criterion": [
        "SetCriterion",
        "calculate_uncertainty",
        "dice_loss",
        "dice_loss_jit",
        "sigmoid_ce_loss",
        "sigmoid_ce_loss_jit",
    ],
    "mask2former.modeling.matcher": ["HungarianMatcher", "batch_dice_loss_jit", "batch_sigmoid_ce_loss_jit"],
    "mask2former.modeling.meta_arch.mask_former_head": ["MaskFormerHead", "build_transformer_decoder"],
    "mask2former.modeling.meta_arch.per_pixel_baseline": ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"],
    "mask2former.modeling.pixel_decoder.fpn": [
        "BasePixelDecoder",
        "TransformerEncoderPixelDecoder",
        "build_pixel_decoder",
    ],
    "mask2former.modeling.pixel_decoder.msdeformattn": [
        "MSDeformAttnPixelDecoder",
        "MSDeformAttnTransformerEncoderOnly",
        "build_pixel_decoder",
    ],
    "mask2former.modeling.pixel_decoder.ops.modules": ["MSDeformAttn"],
    "mask2former.modeling.transformer_decoder.mask2former_transformer_decoder": [
        "MLP",
        "CrossAttentionLayer",
        "FFNLayer",
        "MultiScaleMaskedTransformerDecoder",
        "SelfAttentionLayer",
    ],
    "mask2former.modeling.transformer_decoder.maskformer_transformer_decoder": [
        "MLP",
        "StandardTransformerDecoder",
        "TRANSFORMER_DECODER_REGISTRY",
        "build_transformer_decoder",
    ],
    "mask2former.modeling.transformer_decoder.position_encoding": ["PositionEmbeddingSine"],
    "mask2former.utils.misc": ["is_dist_avail_and_initialized", "nested_tensor_from_tensor_list"],
}


@pytest.mark.parametrize("module", NAMES)
def test_names_are_where_the_official_release_has_them(module: str) -> None:
    assert set(NAMES[module]) <= set(vars(import_module(module)))


@pytest.mark.parametrize("name", OFFICIAL_MODULES)
def test_every_old_module_can_be_imported(name: str) -> None:
    assert import_module(f"mask2former.{name}").__name__ == f"mask2former.{name}"


def test_they_are_the_same_classes() -> None:
    import mask2former.maskformer_model

    assert mask2former.maskformer_model.MaskFormer is mask2former.MaskFormer
    assert train_net.Trainer.__name__ == "Trainer"
    assert callable(train_net.setup)


def test_other_modules_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"mask2former\.maskformer"):
        import_module("mask2former.maskformer")
    with pytest.raises(ModuleNotFoundError, match="maskformer_model"):
        import_module("maskformer_model")
