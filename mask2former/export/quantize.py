"""8-bit integers for ONNX files on CPUs, by ONNX Runtime's quantisation."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mask2former.durable_files import replace_file

from .graph import INPUT_NAME
from .info import INFO_KEY, ExportInfo

__all__ = ["Quantization", "quantize_onnx"]

Quantization = Literal["dynamic", "static"]

# Only products with a weight. Those of two activations decide where queries attend and which pixels a mask has; they
# stay in floating point, as does the sampling of deformable attention.
_OPTIONS = {"MatMulConstBOnly": True, "DefaultTensorType": 1}
_TYPES = {"dynamic": ["MatMul", "Gemm"], "static": ["Conv", "MatMul", "Gemm"]}


def quantize_onnx(
    source: Path,
    target: Path,
    quantization: Quantization,
    calibration: Iterable[np.ndarray] = (),
    float_layers: Sequence[str] = (),
) -> None:
    """Write ``source`` with 8-bit weights, one scale a channel.

    Args:
        source: an ONNX file in float32.
        target: the file to write.
        quantization: "dynamic" quantises linear layers, with the range of their inputs found at run time; "static"
            convolutions too, with ranges seen in the calibration.
        calibration: for "static", batches (N, C, H, W) of the file's input type.
        float_layers: beginnings of parameters' names, such as "backbone.stem": these layers stay in float32.

    Raises:
        ValueError: if a static quantisation has no pictures to calibrate with, or a name is that of no layer.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    reader = _Reader(calibration) if quantization == "static" else None
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        # Folds constants, and batch norms into convolutions; shapes with symbols are more than its inference bears.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        arguments: dict[str, Any] = {
            "op_types_to_quantize": _TYPES[quantization],
            "nodes_to_exclude": _nodes_of_layers(prepared, float_layers),
            "per_channel": True,
            "reduce_range": True,  # 7 bits: sums of 8 saturate on processors without VNNI
            "weight_type": QuantType.QInt8,
            "extra_options": _OPTIONS,
        }
        if reader is None:
            quantize_dynamic(prepared, target, **arguments)
        else:
            quantize_static(
                prepared,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                **arguments,
            )
    _copy_info(source, target, f"int8 {quantization}")


def _nodes_of_layers(path: Path, layers: Sequence[str]) -> list[str]:
    """Names of the nodes that read a parameter whose name begins so."""
    import onnx

    found: list[str] = []
    nodes = onnx.load(path, load_external_data=False).graph.node
    for layer in layers:
        own = [node.name for node in nodes if any(name.startswith(f"network.{layer}") for name in node.input)]
        if not own:
            raise ValueError(
                f"there is no layer {layer!r} to leave in float32; give the beginning of a parameter's name as in the "
                "checkpoint, such as backbone.stem. Weights of linear layers have lost theirs in ONNX."
            )
        found += own
    return found


class _Reader:
    """Hands batches to ONNX Runtime's calibration, one a call and None after the last."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self._batches: Iterator[np.ndarray] = iter(batches)
        self._first = next(self._batches, None)
        if self._first is None:
            raise ValueError(
                "static quantisation needs pictures to calibrate with, and there are none; name a folder of some tens "
                "of typical ones, or quantise dynamically."
            )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch, self._first = self._first, None
        batch = next(self._batches, None) if batch is None else batch
        return None if batch is None else {INPUT_NAME: batch}


def _copy_info(source: Path, target: Path, precision: str) -> None:
    import onnx

    texts = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    info = dataclasses.replace(ExportInfo.from_json(texts.get(INFO_KEY), source), precision=precision)
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {INFO_KEY: info.to_json()})
    with replace_file(target) as file:
        onnx.save(model, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to do what is done: its logger is the root."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
