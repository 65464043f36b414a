"""Hugging Face's names and ours: there and back, and the same weights give the same logits."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.modeling.checkpoint_compat import (
    convert_checkpoint,
    from_huggingface,
    is_huggingface,
    to_huggingface,
)
from tests.huggingface_models import our_model, randomise, their_model

# Ours and what the files of facebook/mask2former-swin-* call it.
NAMES = {
    "backbone.patch_embed.proj.bias": "model.pixel_level_module.encoder.embeddings.patch_embeddings.projection.bias",
    "backbone.layers.2.blocks.1.attn.relative_position_bias_table": (
        "model.pixel_level_module.encoder.encoder.layers.2.blocks.1.attention.self.relative_position_bias_table"
    ),
    "backbone.layers.0.blocks.0.attn.proj.bias": (
        "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.output.dense.bias"
    ),
    "backbone.layers.0.blocks.0.mlp.fc2.bias": (
        "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.output.dense.bias"
    ),
    "backbone.norm0.weight": "model.pixel_level_module.encoder.hidden_states_norms.stage1.weight",
    "backbone.res2.1.conv3.norm.running_var": (
        "model.pixel_level_module.encoder.encoder.stages.0.layers.1.layer.2.normalization.running_var"
    ),
    "sem_seg_head.pixel_decoder.adapter_1.weight": "model.pixel_level_module.decoder.adapter_1.0.weight",
    "sem_seg_head.pixel_decoder.layer_1.norm.weight": "model.pixel_level_module.decoder.layer_1.1.weight",
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.norm2.bias": (
        "model.pixel_level_module.decoder.encoder.layers.5.final_layer_norm.bias"
    ),
    "sem_seg_head.predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_weight": (
        "model.transformer_module.decoder.layers.8.cross_attn.in_proj_weight"
    ),
    "sem_seg_head.predictor.query_feat.weight": "model.transformer_module.queries_features.weight",
    "sem_seg_head.predictor.mask_embed.layers.2.bias": (
        "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.bias"
    ),
    "sem_seg_head.predictor.class_embed.weight": "class_predictor.weight",
    "criterion.empty_weight": "criterion.empty_weight",
}


def test_names_there_and_back() -> None:
    ours = {name: torch.tensor(i) for i, name in enumerate(NAMES)}
    theirs = to_huggingface(ours)
    assert list(theirs) == list(NAMES.values())
    assert is_huggingface(theirs)
    assert not is_huggingface(ours)
    assert from_huggingface(theirs) == ours


def test_attention_projections_are_split_in_the_order_query_key_value() -> None:
    ours = {
        "backbone.layers.0.blocks.0.attn.qkv.bias": torch.arange(6.0),
        "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight": torch.randn(6, 2),
    }
    theirs = to_huggingface(ours)
    swin = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self."
    assert [theirs[f"{swin}{part}.bias"].tolist() for part in ("query", "key", "value")] == [[0, 1], [2, 3], [4, 5]]
    decoder = "model.transformer_module.decoder.layers.0.self_attn."
    assert [theirs[f"{decoder}{part}_proj.weight"].shape for part in "qkv"] == [(2, 2)] * 3
    assert len(theirs) == 6
    back = from_huggingface(theirs)
    assert all(torch.equal(back[n], t) for n, t in ours.items())


def test_what_they_do_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"1 names have no counterpart .*'backbone\.body\.conv1\.weight'.* only"):
        to_huggingface({"backbone.body.conv1.weight": torch.zeros(1), "backbone.norm0.weight": torch.zeros(1)})


@pytest.mark.parametrize("model", ["r50_coco_panoptic", "swin_t_coco_instance", "r101_ade20k_semantic"])
def test_official_models_there_and_back_bit_for_bit(model: str, contract_dir: Path) -> None:
    shapes = json.loads((contract_dir / "state_dicts" / f"{model}.json").read_text())["state_dict"]
    seeded = runpy.run_path(str(contract_dir / "seeded.py"))["seeded_state_dict"]
    ours = seeded({name: tuple(shape) for name, shape in shapes.items()})
    theirs = to_huggingface(ours)
    assert not ours.keys() & theirs.keys()
    back = from_huggingface(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def logits(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        if hasattr(model, "sem_seg_head"):
            outputs = model.sem_seg_head(model.backbone(images))
            return outputs["pred_logits"], outputs["pred_masks"]
        outputs = model(pixel_values=images)
        return outputs.class_queries_logits, outputs.masks_queries_logits


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_the_same_weights_give_the_same_logits(backbone: str, tmp_path: Path) -> None:
    theirs, ours = their_model(backbone), our_model(backbone)
    randomise(theirs)
    images = torch.randn(2, 3, 96, 160)
    expected = logits(theirs, images)

    # As it is in memory, whatever the version of transformers calls things there.
    ours.load_state_dict(convert_checkpoint(theirs.state_dict(), ours.state_dict()), strict=True)
    for actual, reference in zip(logits(ours, images), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=0, atol=1e-5 * float(reference.max() - reference.min()))

    # As transformers writes it, and as we write it for transformers.
    safetensors = pytest.importorskip("safetensors.torch")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    converted = convert_checkpoint(safetensors.load_file(file), ours.state_dict())
    assert all(torch.equal(converted[n], t) for n, t in ours.state_dict().items() if "position_index" not in n)
    safetensors.save_file(to_huggingface(ours.state_dict()), file, metadata={"format": "pt"})
    again = type(theirs).from_pretrained(tmp_path).eval()
    for actual, reference in zip(logits(again, images), expected, strict=True):
        torch.testing.assert_close(actual, reference)


def test_the_resnet_of_timm_inside_theirs() -> None:
    pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    encoder = transformers.TimmBackboneConfig(
        backbone="resnet50", out_indices=[1, 2, 3, 4], use_pretrained_backbone=False
    )
    theirs = transformers.AutoBackbone.from_config(encoder).eval()
    randomise(theirs)
    state = {f"model.pixel_level_module.encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = our_model("resnet").backbone
    converted = {n.removeprefix("backbone."): tuple(t.shape) for n, t in from_huggingface(state).items()}
    assert ours.state_dict().keys() == {n for n in converted if not n.endswith("num_batches_tracked")}
