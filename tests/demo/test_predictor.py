"""The demo with the real model, small and with random weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from predictor import Predictor, VisualizationDemo
from pycocotools import mask as mask_util

import demo
from mask2former.engine.setup import load_config

DATASET = "demo_test_tiny"
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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def load(config: Path, *opts: object) -> CfgNode:
    return load_config(str(config), [str(word) for word in opts])


def test_predictor_is_the_model_on_the_resized_picture(config: Path, photograph: np.ndarray) -> None:
    predictor = Predictor(load(config))
    inputs = predictor.prepare(photograph)
    assert (inputs["height"], inputs["width"]) == (90, 120)
    assert inputs["image"].shape == (3, 64, 85)
    rgb = inputs["image"].float().mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(rgb, photograph.mean(axis=(0, 1))[::-1], atol=1)
    result = predictor(photograph)
    assert result["panoptic_seg"][0].shape == (90, 120)
    assert result["sem_seg"].shape == (3, 90, 120)


@pytest.mark.parametrize(("image_format", "channels"), [("BGR", [0, 1, 2]), ("RGB", [2, 1, 0])])
def test_untouched_at_size_0(config: Path, photograph: np.ndarray, image_format: str, channels: list[int]) -> None:
    predictor = Predictor(load(config, "INPUT.MIN_SIZE_TEST", 0, "INPUT.FORMAT", image_format))
    image = predictor.prepare(photograph)["image"]
    np.testing.assert_array_equal(image.numpy(), photograph[..., channels].transpose(2, 0, 1))


def test_gray_models_get_one_channel(config: Path, photograph: np.ndarray) -> None:
    predictor = Predictor(load(config, "INPUT.MIN_SIZE_TEST", 0))
    predictor._format = "L"
    image = predictor.prepare(photograph)["image"]
    assert image.shape == (1, 90, 120)
    assert np.abs(image[0].numpy() - cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY).astype(int)).max() <= 1


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_command_line_writes_what_the_model_says(
    config: Path, photograph: np.ndarray, tmp_path: Path, task: str
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    arguments = ["--config-file", config, "--input", tmp_path / "a.png", "--output", tmp_path / "out", "--task", task]
    assert demo.main([str(word) for word in (*arguments, "--confidence-threshold", "0.2")]) == 0
    segments = json.loads((tmp_path / "out" / "a.json").read_text())["segments"]
    assert segments
    masks = np.array([mask_util.decode(segment["segmentation"]) for segment in segments], dtype=bool)
    assert masks.shape[1:] == (90, 120)
    result = Predictor(load(config, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.2))(photograph)
    if task == "panoptic":
        ids, infos = result["panoptic_seg"]
        assert [s["id"] for s in segments] == [info["id"] for info in infos]
        expected = np.array([ids.numpy() == info["id"] for info in infos])
    elif task == "semantic":
        labels = result["sem_seg"].argmax(0).numpy()
        expected = np.array([labels == segment["category_id"] for segment in segments])
    else:
        kept = result["instances"][result["instances"].scores >= 0.2]
        assert [s["score"] for s in segments] == pytest.approx(kept.scores.tolist())
        expected = kept.pred_masks.numpy()
    np.testing.assert_array_equal(masks, expected)
    assert [s["area"] for s in segments] == expected.sum(axis=(1, 2)).tolist()


def test_instances_of_a_panoptic_model_are_things(config: Path, photograph: np.ndarray) -> None:
    predictions, _ = VisualizationDemo(load(config), task="instance", threshold=0.0).run_on_image(photograph)
    classes = predictions["instances"].pred_classes.tolist()
    assert classes
    assert set(classes) <= {0, 1}


def test_only_the_task_is_computed(config: Path, photograph: np.ndarray) -> None:
    assert VisualizationDemo(load(config)).run_on_image(photograph)[0].keys() == {"panoptic_seg"}
    assert VisualizationDemo(load(config), task="semantic").run_on_image(photograph)[0].keys() == {"sem_seg"}


def test_configuration_of_the_caller_stays_as_it_is(config: Path) -> None:
    cfg = load(config)
    before = cfg.dump()
    VisualizationDemo(cfg, task="semantic", threshold=0.3)
    assert cfg.dump() == before


def test_drawing_has_the_size_of_the_picture(config: Path, photograph: np.ndarray) -> None:
    drawing = VisualizationDemo(load(config), task="semantic").run_on_image(photograph)[1]
    assert drawing.shape == photograph.shape
    assert drawing.dtype == np.uint8
    assert np.any(drawing != photograph)
