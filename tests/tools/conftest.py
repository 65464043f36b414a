"""A trained model's files, tiny; and the tools as neighbours, which they are to one another when Python runs one."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image

from tests.modeling.conftest import make_tiny_cfg

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


@pytest.fixture
def tiny_files(tmp_path: Path) -> tuple[CfgNode, Path]:
    """Configuration and folder of ``config.yaml``, ``model.pth`` and ``pictures/`` of two sizes."""
    cfg = make_tiny_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 64
    model = build_model(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("wide", (60, 90)), ("high", (120, 70))):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size[::-1]).save(tmp_path / "pictures" / f"{name}.png")
    return cfg, tmp_path
