"""Writing a graph in one of four formats, each with its :class:`ExportInfo` inside."""

import io
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from mask2former.durable_files import replace_file, saved_bytes
from mask2former.ops.gathered_attention import without_grid_sample

from .graph import INPUT_NAME, MAX_BATCH, MAX_SIZE, MIN_SIZE, OUTPUT_NAMES, ExportGraph, InputType
from .info import INFO_KEY, ExportInfo

__all__ = ["ONNX_OPSET", "ExportFormat", "export_graph"]

ExportFormat = Literal["onnx", "torchscript", "torch_export", "aoti"]

# The first in which all of the graph is standard and Resize is PyTorch's; ONNX Runtime has run it since 1.17.
ONNX_OPSET = 20
# What is recorded; any other batch and size will do later. Two images and odd sides, so that no length is 1 or a
# multiple by chance, which the exporter might take for a rule. Swin's coarsest map, too, has two windows of 12 a side.
_SAMPLE_BATCH, _SAMPLE_HEIGHT, _SAMPLE_WIDTH = 2, 524, 580


def export_graph(
    graph: ExportGraph, path: str | Path, export_format: ExportFormat, info: ExportInfo, *, grid_sample: bool = True
) -> None:
    """Write a model.

    Args:
        graph: what is exported.
        path: the file; for "aoti" it must end in ``.pt2``.
        export_format: "onnx" for ONNX Runtime and others; "torchscript" for LibTorch; "torch_export" for
            ``torch.export.load``; "aoti", compiled by AOTInductor for the device that the graph is on.
        info: what the file says about itself.
        grid_sample: whether deformable attention may sample images by one operator, which some runtimes lack or
            compute wrongly; else it looks pixels up, which takes longer on a CPU.

    Raises:
        OSError: it cannot be written; a file that was there stays.
        ValueError: if the format is unknown, or the file's name does not suit it.
    """
    if export_format not in get_args(ExportFormat):
        raise ValueError(f"format is {export_format!r}, expected one of {', '.join(get_args(ExportFormat))}.")
    if export_format == "aoti" and Path(path).suffix != ".pt2":
        raise ValueError(f"AOTInductor packages end in .pt2, but the output is {path}; name it {Path(path).stem}.pt2.")
    sample = _sample(graph, info.input_type)
    # Not in the autocast of who calls, which formats take in part.
    sampling = nullcontext() if grid_sample else without_grid_sample()
    with torch.no_grad(), torch.autocast(sample.device.type, enabled=False), sampling:
        _WRITERS[export_format](graph, sample, Path(path), info)


def _sample(graph: ExportGraph, input_type: InputType) -> Tensor:
    channels = len(graph.pixel_mean)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(256, (_SAMPLE_BATCH, channels, _SAMPLE_HEIGHT, _SAMPLE_WIDTH), generator=generator)
    return sample.to(graph.pixel_mean.device, getattr(torch, input_type))


def _export_program(graph: ExportGraph, sample: Tensor) -> torch.export.ExportedProgram:
    free = torch.export.Dim.DYNAMIC
    side = free(min=MIN_SIZE, max=MAX_SIZE)
    return torch.export.export(
        graph,
        (sample,),
        dynamic_shapes={INPUT_NAME: {0: free(min=1, max=MAX_BATCH), 2: side, 3: side}},
        strict=False,
        # What cannot be proved for every size (that a padded side is a multiple, for one) is checked at run time.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _write_onnx(graph: ExportGraph, sample: Tensor, path: Path, info: ExportInfo) -> None:
    onnx = _require_onnx()
    program = torch.onnx.export(
        _export_program(graph, sample),
        (sample,),
        input_names=[INPUT_NAME],
        output_names=list(OUTPUT_NAMES[graph.postprocessing]),
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[INFO_KEY] = info.to_json()
    with replace_file(path) as file:
        onnx.save(program.model_proto, file)


def _write_torchscript(graph: ExportGraph, sample: Tensor, path: Path, info: ExportInfo) -> None:
    with warnings.catch_warnings():
        # Checks of shapes become constants, as they should: what they compare follows from the model.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
        traced = torch.jit.trace(graph, (sample,), check_trace=False)
        _write(path, partial(torch.jit.save, traced, _extra_files={INFO_KEY: info.to_json()}))


def _write_torch_export(graph: ExportGraph, sample: Tensor, path: Path, info: ExportInfo) -> None:
    program = _export_program(graph, sample)
    _write(path, partial(torch.export.save, program, extra_files={INFO_KEY: info.to_json()}))


def _write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    content = saved_bytes(save)
    with replace_file(path) as file:
        file.write(content)


def _write_aoti(graph: ExportGraph, sample: Tensor, path: Path, info: ExportInfo) -> None:
    import torch._inductor

    program = _export_program(graph, sample)
    settings = {"aot_inductor.metadata": {INFO_KEY: info.to_json()}}
    compile_and_package = torch._inductor.aoti_compile_and_package
    _write(path, lambda file: compile_and_package(program, package_path=file, inductor_configs=settings))


_WRITERS: dict[ExportFormat, Callable[[ExportGraph, Tensor, Path, ExportInfo], None]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "torch_export": _write_torch_export,
    "aoti": _write_aoti,
}


def _require_onnx() -> ModuleType:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"exporting ONNX needs {e.name}: pip install 'mask2former[export]'.") from e
    return onnx
