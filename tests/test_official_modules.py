"""Imports that programs of the official release have."""

from importlib import import_module
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog

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
    "mask2former.data.datasets.register_ade20k_full": ["ADE20K_SEM_SEG_FULL_CATEGORIES"],
    "mask2former.data.datasets.register_ade20k_panoptic": ["ADE20K_150_CATEGORIES"],
    "mask2former.data.datasets.register_coco_panoptic_annos_semseg": [
        "get_metadata",
        "register_coco_panoptic_annos_sem_seg",
    ],
    "mask2former.data.datasets.register_mapillary_vistas": ["MAPILLARY_VISTAS_SEM_SEG_CATEGORIES"],
    "mask2former.evaluation.instance_evaluation": ["InstanceSegEvaluator"],
    "mask2former.modeling.backbone.swin": ["D2SwinTransformer", "PatchEmbed"],
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
    "mask2former.modeling.pixel_decoder.ops.functions": ["MSDeformAttnFunction"],
    "mask2former.modeling.pixel_decoder.ops.functions.ms_deform_attn_func": [
        "MSDeformAttnFunction",
        "ms_deform_attn_core_pytorch",
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
    "mask2former.modeling.transformer_decoder.transformer": ["_get_activation_fn", "_get_clones"],
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


def test_lists_of_categories() -> None:
    from mask2former.data.datasets.register_ade20k_full import ADE20K_SEM_SEG_FULL_CATEGORIES
    from mask2former.data.datasets.register_ade20k_panoptic import ADE20K_150_CATEGORIES
    from mask2former.data.datasets.register_mapillary_vistas import MAPILLARY_VISTAS_SEM_SEG_CATEGORIES

    def metadata(name: str) -> Any:
        return MetadataCatalog.get(name)

    ade20k = metadata("ade20k_panoptic_val")
    assert [entry["name"] for entry in ADE20K_150_CATEGORIES] == ade20k.stuff_classes
    assert [entry["color"] for entry in ADE20K_150_CATEGORIES] == ade20k.stuff_colors
    assert [entry["name"] for entry in ADE20K_150_CATEGORIES if entry["isthing"]] == ade20k.thing_classes
    assert [entry["id"] for entry in ADE20K_150_CATEGORIES] == list(range(150))

    full = metadata("ade20k_full_sem_seg_val").stuff_classes
    assert [entry["name"] for entry in ADE20K_SEM_SEG_FULL_CATEGORIES] == full
    assert ADE20K_SEM_SEG_FULL_CATEGORIES[1] == {"name": "building, edifice", "id": 312, "trainId": 1}

    evaluated = [entry for entry in MAPILLARY_VISTAS_SEM_SEG_CATEGORIES if entry["evaluate"]]
    assert [entry["readable"] for entry in evaluated] == metadata("mapillary_vistas_sem_seg_val").stuff_classes
    assert len(MAPILLARY_VISTAS_SEM_SEG_CATEGORIES) == 66


def test_clones_do_not_share_parameters() -> None:
    from mask2former.modeling.transformer_decoder.transformer import _get_activation_fn, _get_clones

    clones = _get_clones(torch.nn.Linear(2, 2), 3)
    assert len({id(clone.weight) for clone in clones}) == 3
    assert _get_activation_fn("gelu")(torch.ones(1)).item() == pytest.approx(0.8413, abs=1e-4)
