"""The YAML files that the official release lacks: what they build, and how they differ from the official ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from torch import nn

from mask2former import MaskFormer, add_maskformer2_config
from mask2former.modeling import PerPixelBaselineHead, PerPixelBaselinePlusHead

CONFIGS = Path(__file__).parents[1] / "configs"
ADE20K = "ade20k/semantic-segmentation/maskformer_v1"
COCO_TRAIN_IMAGES = 118287


def load(name: str) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=False)
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def differences(one: CfgNode, other: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Keys whose values differ, with those of ``other``."""
    found: dict[str, Any] = {}
    for key, value in one.items():
        if isinstance(value, CfgNode):
            found |= differences(value, other[key], f"{prefix}{key}.")
        elif value != other[key]:
            found[prefix + key] = other[key]
    return found


@pytest.mark.parametrize(
    ("name", "classes", "millions"),  # of parameters, as in Tables 1 to 3
    [
        ("coco/panoptic-segmentation/maskformer_v1/maskformer_panoptic_R50_bs64_554k.yaml", 133, 45),
        ("coco/instance-segmentation/maskformer_v1/maskformer_instance_R50_bs64_554k.yaml", 80, 45),
        (
            "coco/panoptic-segmentation/maskformer_v1/swin/maskformer_panoptic_swin_large_IN21k_384_bs64_554k.yaml",
            133,
            212,
        ),
        (f"{ADE20K}/maskformer_R50_bs16_160k.yaml", 150, 41),
        (f"{ADE20K}/swin/maskformer_swin_tiny_bs16_160k.yaml", 150, 42),
        (f"{ADE20K}/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640.yaml", 150, 212),
    ],
)
def test_maskformers_of_the_tables(name: str, classes: int, millions: int) -> None:
    cfg = load(name)
    model = build(cfg)
    assert isinstance(model, MaskFormer)
    assert model.sem_seg_head.predictor.class_embed.out_features == classes + 1
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)
    # The loss of the MaskFormer paper: 20 times the focal loss, once the dice loss, six times over.
    assert model.criterion.weight_dict["loss_mask_4"] == 20
    assert model.criterion.weight_dict["loss_dice"] == model.criterion.weight_dict["loss_ce"] == 1
    assert model.criterion.mask_loss.__name__ == "sigmoid_focal_loss"
    if name.startswith("coco"):
        epochs = [n * cfg.SOLVER.IMS_PER_BATCH / COCO_TRAIN_IMAGES for n in (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)]
        assert epochs == pytest.approx([200, 300], abs=0.1)


def test_maskformer_with_fapn() -> None:
    """Table 3 gives it no number of parameters."""
    plain = load(f"{ADE20K}/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640.yaml")
    fapn = load(f"{ADE20K}/swin/maskformer_swin_large_fapn_IN21k_384_bs16_160k_res640.yaml")
    expected = {"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "FaPNPixelDecoder", "SOLVER.DDP.STATIC_GRAPH": True}
    assert differences(plain, fapn) == expected
    assert isinstance(build(fapn), MaskFormer)


def test_maskformer_trains_swin_transformers_at_their_own_pace() -> None:
    resnet = load(f"{ADE20K}/maskformer_R50_bs16_160k.yaml")
    swin = load(f"{ADE20K}/swin/maskformer_swin_tiny_bs16_160k.yaml")
    changed = {key: value for key, value in differences(resnet, swin).items() if key.startswith("SOLVER.")}
    assert changed == {
        "SOLVER.BASE_LR": 6e-5,
        "SOLVER.BACKBONE_MULTIPLIER": 1.0,
        "SOLVER.WARMUP_FACTOR": 1e-6,
        "SOLVER.WARMUP_ITERS": 1500,
        "SOLVER.WEIGHT_DECAY": 0.01,
    }


@pytest.mark.parametrize(
    ("name", "head"),
    [("per_pixel_baseline", PerPixelBaselineHead), ("per_pixel_baseline_plus", PerPixelBaselinePlusHead)],
)
def test_per_pixel_baselines(name: str, head: type[nn.Module]) -> None:
    model = build(load(f"{ADE20K}/{name}_R50_bs16_160k.yaml"))
    assert isinstance(model, SemanticSegmentor)
    assert type(model.sem_seg_head) is head
    features = {
        f"res{i}": torch.zeros(1, 2 ** (i + 6), 2 ** (6 - i), 2 ** (6 - i), device="meta") for i in (2, 3, 4, 5)
    }
    logits, _ = model.sem_seg_head.eval()(features)
    assert logits.shape == (1, 150, 64, 64)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
@pytest.mark.parametrize("epochs", [12, 25])
def test_shorter_schedules_change_nothing_but_their_length(task: str, epochs: int) -> None:
    folder = f"coco/{task}-segmentation"
    long, short = (load(f"{folder}/maskformer2_R50_bs16_{n}ep.yaml") for n in (50, epochs))
    changed = differences(long, short)
    assert set(changed) == {"SOLVER.MAX_ITER", "SOLVER.STEPS"}
    assert changed["SOLVER.MAX_ITER"] * 50 == long.SOLVER.MAX_ITER * epochs
    for step, share in zip(changed["SOLVER.STEPS"], (8 / 9, 26 / 27), strict=True):
        assert step == pytest.approx(share * changed["SOLVER.MAX_ITER"], abs=1)


def test_semantic_training_on_coco_is_that_of_the_other_tasks() -> None:
    panoptic = load("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    semantic = load("coco/semantic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    assert differences(panoptic, semantic) == {
        "DATASETS.TRAIN": ("coco_2017_train_panoptic_with_sem_seg",),
        "INPUT.DATASET_MAPPER_NAME": "coco_semantic_lsj",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    }
