"""MaskFormer's older model and the per-pixel baselines, tiny, through the trainer: steps, evaluation, resuming."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from mask2former.engine import Trainer

TINY: dict[str, object] = {
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__BACKBONE__FREEZE_AT": 0,
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__NORM": "BN",
    "MODEL__RESNETS__STEM_TYPE": "basic",
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
    "MODEL__RESNETS__RES5_MULTI_GRID": "[1, 1, 1]",
    "MODEL__RESNETS__OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL__SEM_SEG_HEAD__IN_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
    "MODEL__SEM_SEG_HEAD__MASK_DIM": 16,
    "MODEL__MASK_FORMER__HIDDEN_DIM": 16,
    "MODEL__MASK_FORMER__NHEADS": 2,
    "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 16,
    "MODEL__MASK_FORMER__DEC_LAYERS": 2,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 64,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 3,
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "INPUT__MIN_SIZE_TRAIN": "(48,)",  # 64 wide
    "INPUT__MIN_SIZE_TEST": 49,  # an odd size
    "SOLVER__MAX_ITER": 2,
}
BASELINE = {"MODEL__META_ARCHITECTURE": "SemanticSegmentor", "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False}
VARIANTS: dict[str, dict[str, object]] = {
    "MaskFormerHead": {"MODEL__META_ARCHITECTURE": "MaskFormer", "MODEL__MASK_FORMER__MASK_LOSS": "focal"},
    "PerPixelBaselineHead": BASELINE | {"MODEL__MASK_FORMER__TEST__INSTANCE_ON": False},
    "PerPixelBaselinePlusHead": BASELINE | {"MODEL__MASK_FORMER__TEST__INSTANCE_ON": False},
}


@pytest.mark.parametrize("head", VARIANTS)
def test_train_evaluate_and_resume(toy_config: Callable[..., CfgNode], head: str) -> None:
    cfg = toy_config(**TINY, **VARIANTS[head], MODEL__SEM_SEG_HEAD__NAME=head)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    evaluated = {"sem_seg", "panoptic_seg", "segm"} if head == "MaskFormerHead" else {"sem_seg"}
    assert evaluated <= set(results)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100

    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file()
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
