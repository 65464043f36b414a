"""Trained models as files for other programs: ONNX, TorchScript, ``torch.export`` and AOTInductor."""

from .check import compare_with_model
from .formats import ExportFormat, export_graph
from .graph import MAX_SIZE, MIN_SIZE, ExportGraph, InputType, PostProcessing
from .info import ExportInfo
from .model import ExportedMaskFormer, ExportedResults, model_of_file
from .network import use_exported_network
from .quantize import Quantization, quantize_onnx
from .runtime import ExportedModel, is_exported, load_exported

__all__ = [
    "MAX_SIZE",
    "MIN_SIZE",
    "ExportFormat",
    "ExportGraph",
    "ExportInfo",
    "ExportedMaskFormer",
    "ExportedModel",
    "ExportedResults",
    "InputType",
    "PostProcessing",
    "Quantization",
    "compare_with_model",
    "export_graph",
    "is_exported",
    "load_exported",
    "model_of_file",
    "quantize_onnx",
    "use_exported_network",
]
