"""8-bit files: smaller, still about the same, and of the weights alone where decisions are made."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from torch import Tensor

from mask2former.export import compare_with_model, load_exported, quantize_onnx
from mask2former.modeling import MaskFormer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.slow
def test_layers_that_stay_in_float(export: Callable[..., Path], tmp_path: Path, batches: list[Tensor]) -> None:
    quantized = {}
    for name, layers in (("all", ()), ("some", ("backbone.stem", "backbone.res2.0.conv1"))):
        path = tmp_path / f"{name}.onnx"
        quantize_onnx(export("resnet", "onnx"), path, "static", [batch.numpy() for batch in batches], layers)
        floats = {tensor.name for tensor in onnx.load(path).graph.initializer if tensor.data_type == 1}
        quantized[name] = {weight for weight in floats if weight.endswith((".weight", ".weight_bias"))}
    kept = {weight for weight in quantized["some"] - quantized["all"] if weight.endswith(".weight")}
    assert kept == {"network.backbone.stem.conv1.weight", "network.backbone.res2.0.conv1.weight"}
    with pytest.raises(ValueError, match=r"there is no layer 'backbone\.trunk' to leave in float32"):
        quantize_onnx(export("resnet", "onnx"), tmp_path / "no.onnx", "dynamic", (), ["backbone.trunk"])


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["dynamic", "static"])
def test_quantized_file(
    quantization: str,
    build: Callable[[str], tuple[CfgNode, MaskFormer]],
    export: Callable[..., Path],
    tmp_path: Path,
    batches: list[Tensor],
) -> None:
    source, target = export("resnet", "onnx"), tmp_path / "int8.onnx"
    quantize_onnx(source, target, quantization, [batch.numpy() for batch in batches])

    exported = load_exported(target)
    assert exported.info == dataclasses.replace(load_exported(source).info, precision=f"int8 {quantization}")
    # The convolutions of the backbone are most of the weights, and only "static" quantises them.
    assert target.stat().st_size < (0.4 if quantization == "static" else 1.0) * source.stat().st_size
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert kinds.count("GridSample") == 3
    assert "MatMulInteger" in kinds if quantization == "dynamic" else "QuantizeLinear" in kinds
    errors = compare_with_model(exported, build("resnet")[1], batches)
    assert 1e-4 < errors["class logits"] < 0.3, "neither the float model nor noise"


def test_static_quantization_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs pictures to calibrate with, and there are none"):
        quantize_onnx(Path("unread.onnx"), tmp_path / "int8.onnx", "static", iter(np.zeros((0, 1, 3, 64, 64))))
