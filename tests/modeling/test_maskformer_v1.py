"""MaskFormer's older models as a whole: names, training, inference, and transformers' model of the same weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_model, build_sem_seg_head
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former import add_maskformer2_config
from mask2former.modeling.checkpoint_compat import convert_checkpoint

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ["maskformer_v1_fpn", "maskformer_v1_transformer_encoder"]
HEADS: dict[str, dict[str, Any]] = json.loads((ASSETS / "maskformer_v1_heads.json").read_text())


def official_model(repository: Path, options: list[Any]) -> nn.Module:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(repository / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"))
    cfg.merge_from_list(options)
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_the_official_ones(name: str, repository: Path) -> None:
    model = official_model(repository, HEADS[name]["options"])
    assert sum(parameter.numel() for parameter in model.parameters()) == HEADS[name]["parameters"]
    names: dict[str, list[Any]] = {}
    for key, tensor in model.state_dict().items():
        if not key.startswith("backbone."):
            entry = names.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.*.", key), [0, list(tensor.shape)])
            entry[0] += 1
            assert entry[1] == list(tensor.shape)
    assert names == HEADS[name]["names"]


@pytest.mark.parametrize("name", MODELS)
def test_official_state_dict_loads(name: str, repository: Path, contract_dir: Path) -> None:
    facts = json.loads((contract_dir / "state_dicts" / f"{name}.json").read_text())
    model = official_model(repository, facts["options"])
    state = {key: torch.empty(shape, device="meta") for key, shape in facts["state_dict"].items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert convert_checkpoint(state, model.state_dict()).keys() == state.keys()


def training_input(height: int, width: int, count: int) -> dict[str, Any]:
    instances = Instances((height, width))
    instances.gt_classes = torch.randint(0, 3, (count,))
    instances.gt_masks = torch.rand(count, height, width) > 0.5
    return {
        "image": torch.rand(3, height, width) * 255,
        "instances": instances,
        "sem_seg": torch.randint(0, 3, (height, width)),
    }


BASELINE = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"]
PLUS = [*BASELINE[:3], "PerPixelBaselinePlusHead", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 3]
ENCODER = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"]
DEFORMABLE = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"]
FEATURE = "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE"
VARIANTS: dict[str, list[Any]] = {
    "res5": [],
    "res5, pre-norm, encoder": ["MODEL.MASK_FORMER.PRE_NORM", True, "MODEL.MASK_FORMER.ENC_LAYERS", 1],
    "res5, last layer only": ["MODEL.MASK_FORMER.DEEP_SUPERVISION", False],
    "pixel_embedding": [FEATURE, "pixel_embedding"],
    "transformer_encoder": [*ENCODER, FEATURE, "transformer_encoder"],
    "transformer_encoder, pre-norm": [*ENCODER, FEATURE, "transformer_encoder", "MODEL.MASK_FORMER.PRE_NORM", True],
    "deformable encoder": [*DEFORMABLE, FEATURE, "transformer_encoder"],
    "per-pixel": BASELINE,
    "per-pixel with an encoder": [*BASELINE, *ENCODER],
    "per-pixel with a deformable encoder": [*BASELINE, *DEFORMABLE],
    "per-pixel plus": PLUS,
    "per-pixel plus with an encoder": [*PLUS, *ENCODER, FEATURE, "transformer_encoder"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_reaches_every_parameter(tiny_v1_cfg: CfgNode, variant: str) -> None:
    # Parameters without a gradient stop DistributedDataParallel.
    tiny_v1_cfg.merge_from_list(VARIANTS[variant])
    model = build_model(tiny_v1_cfg).train()
    losses = model([training_input(64, 64, 2), training_input(50, 40, 0)])
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)

    with torch.no_grad():
        result = model.eval()([{"image": torch.rand(3, 50, 61) * 255, "height": 41, "width": 50}])[0]
    assert result["sem_seg"].shape == (3, 41, 50)
    if "per-pixel" not in variant:
        assert result["panoptic_seg"][0].shape == (41, 50)
        assert result["instances"].pred_masks.shape[1:] == (41, 50)


@pytest.mark.parametrize("variant", ["transformer_encoder", "per-pixel plus with an encoder"])
def test_half_precision(tiny_v1_cfg: CfgNode, variant: str) -> None:
    tiny_v1_cfg.merge_from_list(VARIANTS[variant])
    model = build_model(tiny_v1_cfg).train()
    batch = [training_input(64, 64, 2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_loss_terms_are_one_set_for_each_layer(tiny_v1_cfg: CfgNode) -> None:
    losses = build_model(tiny_v1_cfg).train()([training_input(64, 64, 2)])
    assert set(losses) == {f"loss_{term}{layer}" for term in ("ce", "mask", "dice") for layer in ("", "_0", "_1")}


# Ours and what transformers calls it, for what its MaskFormer has beyond a backbone; {} is an index.
THEIR_NAMES = [
    ("pixel_decoder.layer_4", "model.pixel_level_module.decoder.fpn.stem"),
    *(
        (f"pixel_decoder.{ours}", f"model.pixel_level_module.decoder.fpn.layers.{3 - level}.{theirs}")
        for level in (3, 2, 1)
        for ours, theirs in [(f"adapter_{level}", "proj"), (f"layer_{level}", "block")]
    ),
    ("pixel_decoder.mask_features", "model.pixel_level_module.decoder.mask_projection"),
    ("predictor.input_proj", "model.transformer_module.input_projection"),
    ("predictor.query_embed", "model.transformer_module.queries_embedder"),
    ("predictor.transformer.decoder.norm", "model.transformer_module.decoder.layernorm"),
    *(
        (f"predictor.transformer.decoder.layers.{{}}.{ours}", f"model.transformer_module.decoder.layers.{{}}.{theirs}")
        for ours, theirs in [
            ("self_attn", "self_attn"),
            ("multihead_attn", "encoder_attn"),
            ("norm1", "self_attn_layer_norm"),
            ("norm2", "encoder_attn_layer_norm"),
            ("norm3", "final_layer_norm"),
            ("linear1", "mlp.fc1"),
            ("linear2", "mlp.fc2"),
        ]
    ),
    ("predictor.class_embed", "class_predictor"),
    ("predictor.mask_embed.layers.{}", "mask_embedder.{}.0"),
]


def their_tensor(name: str, theirs: dict[str, Tensor]) -> Tensor:
    """What transformers has for a parameter of our head."""
    for ours, target in THEIR_NAMES:
        match = re.fullmatch(ours.replace(".", r"\.").replace("{}", r"(\d+)") + r"\.(.*)", name)
        if match is None:
            continue
        *index, leaf = match.groups()
        stem = target.format(*index)
        if "in_proj" in leaf:
            return torch.cat([theirs[f"{stem}.{part}_proj.{leaf.removeprefix('in_proj_')}"] for part in "qkv"])
        if "fpn" in target:  # a convolution and its norm, in a list
            leaf = leaf.replace("norm.", "1.") if "norm" in leaf else f"0.{leaf}"
        return theirs[f"{stem}.{leaf.replace('out_proj', 'o_proj')}"]
    raise KeyError(name)


def test_the_same_weights_give_the_logits_of_transformers(tiny_v1_cfg: CfgNode) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    encoder = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    detr = transformers.DetrConfig(
        d_model=32, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=64, num_queries=10
    )
    theirs = transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=encoder, decoder_config=detr, fpn_feature_size=64, mask_feature_size=64, num_labels=3
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        std = 0.1 if parameter.dim() < 2 else 1.4 / parameter[0].numel() ** 0.5
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=std)
    state = theirs.state_dict()
    images = torch.randn(2, 3, 96, 160)

    shapes = {f"res{i}": ShapeSpec(channels=2 ** (i + 2), stride=2**i) for i in (2, 3, 4, 5)}
    head = build_sem_seg_head(tiny_v1_cfg, shapes).eval()
    head.load_state_dict({name: their_tensor(name, state) for name in head.state_dict()})
    with torch.no_grad():
        expected = theirs(pixel_values=images)
        maps = theirs.model.pixel_level_module.encoder(images).feature_maps
        actual = head(dict(zip(shapes, maps, strict=True)))
    for ours, reference in [
        (actual["pred_logits"], expected.class_queries_logits),
        (actual["pred_masks"], expected.masks_queries_logits),
    ]:
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * float(reference.max() - reference.min()))
