"""Older names, and how the form of a checkpoint is recognised."""

import pytest
import torch
from torch import Tensor

from mask2former.modeling.checkpoint_compat import convert_checkpoint, convert_names, upgrade_legacy_names


def state(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((2,), float(i)) for i, name in enumerate(names)}


def test_older_names_are_renamed_in_place() -> None:
    old = {
        "backbone.sem_seg_head.x": 0,
        "sem_seg_head.mask_features.weight": 1,
        "sem_seg_head.transformer.level_embed": 2,
        "sem_seg_head.pixel_decoder.adapter_1.weight": 3,
        "sem_seg_head.predictor.static_query.weight": 4,
        "sem_seg_head.predictor.query_embed.weight": 5,
    }
    upgrade_legacy_names(old, "sem_seg_head.")
    assert old == {
        "backbone.sem_seg_head.x": 0,
        "sem_seg_head.pixel_decoder.mask_features.weight": 1,
        "sem_seg_head.pixel_decoder.transformer.level_embed": 2,
        "sem_seg_head.pixel_decoder.adapter_1.weight": 3,
        "sem_seg_head.predictor.query_feat.weight": 4,
        "sem_seg_head.predictor.query_embed.weight": 5,
    }


def test_new_names_stay() -> None:
    new = state(
        "backbone.stem.conv1.weight", "sem_seg_head.pixel_decoder.a.b", "sem_seg_head.predictor.query_feat.weight"
    )
    converted = convert_checkpoint(new, new)
    assert list(converted) == list(new)
    assert all(converted[n] is t for n, t in new.items())


def test_names_of_a_head_without_pixel_decoder_stay() -> None:
    checkpoint = state("backbone.a.b", "sem_seg_head.p2.0.weight", "sem_seg_head.predictor.weight")
    assert list(convert_checkpoint(checkpoint, checkpoint)) == list(checkpoint)
    assert "sem_seg_head.pixel_decoder.p2.0.weight" in convert_checkpoint(checkpoint, {})


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.model."])
def test_what_modules_around_a_model_put_before_its_names_is_removed(before: str) -> None:
    names = ["backbone.a.b", "sem_seg_head.predictor.c", "criterion.empty_weight"]
    checkpoint = state(*(before + name for name in names))
    assert list(convert_checkpoint(checkpoint, {"criterion.empty_weight": torch.zeros(2)})) == names
    assert list(convert_names(checkpoint, "official")) == names


def test_what_is_put_into_names_is_removed_unless_the_model_has_it() -> None:
    checkpoint = state("backbone._orig_mod.a.b", "sem_seg_head.predictor.c")
    assert list(convert_checkpoint(checkpoint, {})) == ["backbone.a.b", "sem_seg_head.predictor.c"]
    assert list(convert_checkpoint(checkpoint, checkpoint)) == list(checkpoint)


def test_names_of_two_models_in_one_stay() -> None:
    checkpoint = state("sem_seg_head.predictor.a", "teacher.sem_seg_head.predictor.a")
    assert list(convert_checkpoint(checkpoint, {})) == list(checkpoint)
    with_prefix = {f"module.{name}": tensor for name, tensor in checkpoint.items()}
    assert list(convert_checkpoint(with_prefix, {})) == list(checkpoint)


@pytest.mark.parametrize("before", ["module.", "module._orig_mod."])
def test_what_is_put_before_names_of_backbones_is_removed(before: str) -> None:
    resnet = {"backbone.stem.conv1.weight": torch.zeros(2)}
    assert list(convert_checkpoint(state(f"{before}conv1.weight"), resnet)) == list(resnet)


def test_counters_are_kept_for_models_that_count() -> None:
    counter = "backbone.stem.conv1.norm.num_batches_tracked"
    checkpoint = state(counter, "backbone.stem.conv1.weight")
    assert counter not in convert_checkpoint(checkpoint, state("backbone.stem.conv1.weight"))
    assert counter in convert_checkpoint(checkpoint, checkpoint)


def test_class_weights_of_other_classes_are_left_out() -> None:
    checkpoint = state("backbone.a.b", "criterion.empty_weight")
    assert "criterion.empty_weight" in convert_checkpoint(checkpoint, {"criterion.empty_weight": torch.zeros(2)})
    assert "criterion.empty_weight" not in convert_checkpoint(checkpoint, {"criterion.empty_weight": torch.zeros(3)})


def test_a_pretrained_backbone_is_recognised_by_what_the_model_has() -> None:
    torchvision = state("conv1.weight", "layer1.0.bn2.bias", "fc.weight")
    resnet = {"backbone.stem.conv1.weight": torch.zeros(2)}
    assert list(convert_checkpoint(torchvision, resnet)) == [
        "backbone.stem.conv1.weight",
        "backbone.res2.0.conv2.norm.bias",
    ]
    timm = {"backbone.body.conv1.weight": torch.zeros(2)}
    assert list(convert_checkpoint(torchvision, timm)) == ["backbone.body.conv1.weight"]
    swin = {"backbone.patch_embed.proj.weight": torch.zeros(2)}
    assert list(convert_checkpoint(state("patch_embed.proj.weight", "head.bias"), swin)) == [
        "backbone.patch_embed.proj.weight"
    ]


def test_arguments_are_not_changed() -> None:
    checkpoint = state("sem_seg_head.mask_features.weight")
    convert_checkpoint(checkpoint, {})
    assert list(checkpoint) == ["sem_seg_head.mask_features.weight"]
