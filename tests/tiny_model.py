"""The real model, small and with random weights, as a configuration file with its checkpoint."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mask2former.engine.setup import load_config

DATASET = "test_tiny"
CONFIG = {
    "MODEL": {
        "META_ARCHITECTURE": "MaskFormer",
        "DEVICE": "cpu",
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": 18,
            "RES2_OUT_CHANNELS": 64,
            "STEM_TYPE": "basic",
            "RES5_MULTI_GRID": [1, 1, 1],
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        },
        "SEM_SEG_HEAD": {
            "NAME": "MaskFormerHead",
            "IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
            "NUM_CLASSES": 3,
            "CONVS_DIM": 32,
            "MASK_DIM": 32,
            "TRANSFORMER_ENC_LAYERS": 1,
            "DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 32,
        },
        "MASK_FORMER": {
            "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
            "HIDDEN_DIM": 32,
            "DIM_FEEDFORWARD": 32,
            "NUM_OBJECT_QUERIES": 12,
            "DEC_LAYERS": 2,
            "DROPOUT": 0.0,
            "TEST": {"PANOPTIC_ON": True, "INSTANCE_ON": True, "SEMANTIC_ON": True},
        },
    },
    "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128},
    "DATASETS": {"TRAIN": [DATASET], "TEST": [DATASET]},
}


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration as a file, with weights."""
    metadata = MetadataCatalog.get(DATASET)
    metadata.set(thing_classes=["cat", "dog"], stuff_classes=["cat", "dog", "sky"])
    metadata.set(thing_dataset_id_to_contiguous_id={1: 0, 2: 1}, stuff_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2})
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    torch.manual_seed(0)
    model = build_model(load_config(str(folder / "tiny.yaml")))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    (folder / "tiny.yaml").write_text(
        yaml.safe_dump(CONFIG | {"MODEL": {**CONFIG["MODEL"], "WEIGHTS": str(folder / "model.pth")}})
    )
    return folder / "tiny.yaml"


@pytest.fixture
def photograph() -> np.ndarray:
    """(90, 120, 3) uint8, BGR."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (120, 90), interpolation=cv2.INTER_CUBIC)
