"""The demo with the real model, small and with random weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.utils.visualizer import ColorMode
from predictor import VisualizationDemo
from pycocotools import mask as mask_util

import demo
import mask2former as m2f
from mask2former.engine.setup import load_config


def load(config: Path, *opts: object) -> CfgNode:
    return load_config(str(config), [str(word) for word in opts])


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_command_line_writes_what_the_model_says(
    tiny_config: Path, photograph: np.ndarray, tmp_path: Path, task: str
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    arguments = ["--config-file", tiny_config, "--input", tmp_path / "a.png", "--output", tmp_path / "out"]
    assert demo.main([str(word) for word in (*arguments, "--task", task, "--confidence-threshold", "0.2")]) == 0
    segments = json.loads((tmp_path / "out" / "a.json").read_text())["segments"]
    assert segments
    masks = np.array([mask_util.decode(segment["segmentation"]) for segment in segments], dtype=bool)
    result = m2f.load(tiny_config).predict(photograph[:, :, ::-1], task=task, threshold=0.2)
    if task == "panoptic":
        assert [s["id"] for s in segments] == [segment.id for segment in result.panoptic.segments]
        expected = np.array([result.panoptic.mask(segment) for segment in result.panoptic.segments])
    elif task == "semantic":
        expected = np.array([result.semantic.labels == segment["category_id"] for segment in segments])
    else:
        assert [s["score"] for s in segments] == pytest.approx(result.instances.scores.tolist())
        expected = result.instances.masks
    np.testing.assert_array_equal(masks, expected)
    assert [s["area"] for s in segments] == expected.sum(axis=(1, 2)).tolist()


@pytest.mark.parametrize(("task", "key"), [(None, "panoptic_seg"), ("semantic", "sem_seg"), ("instance", "instances")])
def test_official_class(tiny_config: Path, photograph: np.ndarray, task: str | None, key: str) -> None:
    predictions, drawing = VisualizationDemo(load(tiny_config), task=task, threshold=0.2).run_on_image(photograph)
    assert predictions.keys() == {key}
    pixels = drawing.get_image()
    assert pixels.shape == photograph.shape
    assert pixels.dtype == np.uint8
    result = m2f.load(tiny_config).predict(photograph[:, :, ::-1], task=task, threshold=0.2)
    np.testing.assert_array_equal(pixels, result.draw())
    assert np.any(pixels[:, :, ::-1] != photograph)


def test_official_class_is_used_as_in_the_official_demo(
    tiny_config: Path, photograph: np.ndarray, tmp_path: Path
) -> None:
    demo_of_cfg = VisualizationDemo(load(tiny_config), ColorMode.IMAGE_BW, parallel=False)
    _, drawing = demo_of_cfg.run_on_image(photograph)
    drawing.save(str(tmp_path / "drawn.png"))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "drawn.png")), drawing.get_image()[:, :, ::-1])


def test_configuration_of_the_caller_stays_as_it_is(tiny_config: Path) -> None:
    cfg = load(tiny_config)
    before = cfg.dump()
    VisualizationDemo(cfg, task="semantic", threshold=0.3)
    assert cfg.dump() == before
