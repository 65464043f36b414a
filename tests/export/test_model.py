"""An exported file in the place of its model: the same results from the same pictures."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode

import mask2former as m2f
from mask2former.export.runtime import _providers
from mask2former.modeling import MaskFormer
from tests.same_results import assert_alike

TASKS = ("panoptic", "instance", "semantic")

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def photograph() -> np.ndarray:
    """(90, 120, 3) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (120, 90), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("kind", ["resnet", pytest.param("swin", marks=pytest.mark.slow)])
def test_onnx(
    kind: str,
    build: Callable[[str], tuple[CfgNode, MaskFormer]],
    export: Callable[..., Path],
    photograph: np.ndarray,
) -> None:
    cfg, model = build(kind)
    eager, exported = m2f.Segmenter(cfg, model=model), m2f.load(export(kind, "onnx"))
    pictures = [photograph, photograph[:60, :80], photograph]
    requests: list[dict[str, Any]] = [
        {"size": 64, "threshold": 0.0},
        {"size": 64, "threshold": 0.1, "batch_size": 3},
        {"size": 75, "threshold": 0.0, "tile": 64},  # tiles reach beyond the pictures
    ]
    for options in requests:
        expected = eager.predict(pictures, task=TASKS, **options)
        assert len(expected[0].instances) > 0
        for ours, theirs in zip(exported.stream(pictures, task=TASKS, **options), expected, strict=True):
            assert_alike(ours, theirs)


def test_onnx_on_a_device_that_is_not_there(export: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="'cuda', but this ONNX Runtime has no CUDAExecutionProvider"):
        m2f.load(export("resnet", "onnx"), device="cuda")


def test_onnx_runtime_is_told_which_gpu() -> None:
    runtime = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert _providers(runtime, "cuda:1") == [("CUDAExecutionProvider", {"device_id": "1"})]
    assert _providers(runtime, "cuda") == ["CUDAExecutionProvider"]
    assert _providers(runtime, "cpu") == ["CPUExecutionProvider"]
    assert _providers(runtime, None) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
