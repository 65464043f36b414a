"""Exported files compute what the model computes, at other batches and sizes than the recorded one."""

import importlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.export import (
    ExportFormat,
    ExportGraph,
    ExportInfo,
    PostProcessing,
    compare_with_model,
    export_graph,
    load_exported,
)
from mask2former.modeling import MaskFormer
from tests.small_disk import disk_of

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Build = Callable[[str], tuple[CfgNode, MaskFormer]]
Export = Callable[..., Path]
# Two programs that add in another order. Where a mask's logit is so near to 0 that they disagree on its sign, a query
# attends to another pixel, and all that follows is different.
ROUNDING, ROUNDING_OF_MASKS = 1e-4, 2e-6


class _SmallestMaskLogit(TorchDispatchMode):
    """Sees how near to 0 the mask logits come that decide what queries attend to, relative to the largest."""

    value = math.inf

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.ge.Scalar:
            self.value = min(self.value, float(args[0].abs().min() / args[0].abs().max()))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _decided(model: MaskFormer, batch: Tensor) -> Tensor | None:
    """The batch, or a darker one, for which rounding cannot decide what a query attends to; None if there is none."""
    for _ in range(30):
        with _SmallestMaskLogit() as smallest:
            model.predict_queries([{"image": image} for image in batch])
        if smallest.value > 5 * ROUNDING_OF_MASKS:
            return batch
        batch = (batch * 0.97).to(torch.uint8)
    return None


def _assert_equal_to_model(path: Path, model: MaskFormer, batches: list[Tensor], tolerance: float = ROUNDING) -> None:
    decided = [found for batch in batches if (found := _decided(model, batch)) is not None]
    assert decided
    errors = compare_with_model(load_exported(path), model, decided)
    assert errors
    assert all(error < tolerance for error in errors.values()), errors


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kind",
    [
        "resnet",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("swin", "maskformer", "R50", "Swin-T", "nuclei")),
    ],
)
def test_onnx(kind: str, build: Build, export: Export, batches: list[Tensor]) -> None:
    _assert_equal_to_model(export(kind, "onnx"), build(kind)[1], batches)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_swin_has_any_number_of_windows(build: Build, export: Export) -> None:
    """Also in the coarsest map, which is one window of 7 x 7 up to 224 pixels a side."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(256, (1, 3, *size), generator=generator).byte() for size in ((96, 480), (480, 96))]
    _assert_equal_to_model(export("swin", "onnx"), build("swin")[1], pictures)


def test_onnx_is_standard_and_of_any_size(export: Export) -> None:
    import onnx

    model = onnx.load(export("resnet", "onnx"))
    onnx.checker.check_model(model)
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    assert not model.functions
    assert sum(node.op_type == "GridSample" for node in model.graph.node) == 3, "one for each level"
    batch, channels, height, width = model.graph.input[0].type.tensor_type.shape.dim
    assert channels.dim_value == 3
    assert all(size.dim_param and not size.dim_value for size in (batch, height, width))


@pytest.mark.parametrize("export_format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_without_grid_sample(export_format: ExportFormat, build: Build, tmp_path: Path, batches: list[Tensor]) -> None:
    cfg, model = build("resnet")
    info = ExportInfo.from_config(cfg, model, postprocessing="none", input_type="uint8", precision="float32")
    path = tmp_path / "model"
    export_graph(ExportGraph(model), path, export_format, info, grid_sample=False)
    _assert_equal_to_model(path, model, batches)
    if export_format == "onnx":
        import onnx

        assert "GridSample" not in {node.op_type for node in onnx.load(path).graph.node}
    else:
        assert "grid_sampler" not in str(torch.jit.load(path).inlined_graph)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kind",
    [
        "resnet",
        "swin",
        "maskformer",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("R50", "Swin-T", "nuclei")),
    ],
)
def test_torchscript(kind: str, build: Build, export: Export, batches: list[Tensor]) -> None:
    _assert_equal_to_model(export(kind, "torchscript"), build(kind)[1], batches)


@pytest.mark.slow
def test_torch_export(build: Build, export: Export, batches: list[Tensor]) -> None:
    _assert_equal_to_model(export("resnet", "torch_export"), build("resnet")[1], batches)


@pytest.mark.slow
@pytest.mark.parametrize("postprocessing", ["semantic", "panoptic", "instance"])
def test_postprocessing_inside(
    postprocessing: PostProcessing, build: Build, export: Export, batches: list[Tensor]
) -> None:
    _assert_equal_to_model(export("resnet", "torchscript", postprocessing), build("resnet")[1], batches)


class _OneConvolution(nn.Module):
    """Predictions that depend on the picture, without a network that takes long to export."""

    def __init__(self, num_queries: int, num_classes: int) -> None:
        super().__init__()
        self.masks = nn.Conv2d(3, num_queries, 4, stride=4)
        self.classes = nn.Linear(3, num_queries * (num_classes + 1))
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        classes = self.classes(images.mean(dim=(2, 3))).unflatten(1, (-1, self.num_classes + 1))
        return classes * 4, self.masks(images) * 8


@pytest.mark.slow
@pytest.mark.parametrize("postprocessing", ["semantic", "panoptic", "instance"])
@pytest.mark.parametrize("export_format", ["onnx", "torch_export", "aoti"])
def test_postprocessing_in_every_format(
    export_format: ExportFormat, postprocessing: PostProcessing, build: Build, tmp_path: Path, batches: list[Tensor]
) -> None:
    if export_format == "aoti" and (shutil.which("g++") is None or postprocessing != "panoptic"):
        pytest.skip("AOTInductor needs a compiler, and takes long")
    cfg, model = build("resnet")
    model.object_mask_threshold, model.overlap_threshold = 0.3, 0.1
    info = ExportInfo.from_config(cfg, model, postprocessing=postprocessing, input_type="float32", precision="float32")
    graph = ExportGraph(model, postprocessing)
    graph.network = _OneConvolution(20, model.sem_seg_head.num_classes)
    path = tmp_path / "model.pt2"
    export_graph(graph, path, export_format, info)
    exported = load_exported(path)
    for batch in batches:
        with torch.no_grad():
            expected = graph(batch.float())
        found = exported(batch.float())
        assert expected[0].unique().numel() > 1
        for value, (name, output) in zip(expected, found.items(), strict=True):
            if value.dtype.is_floating_point:
                torch.testing.assert_close(output, value, atol=1e-4, rtol=1e-4, msg=name)
            else:
                assert (output != value).float().mean() < 1e-3, name


@pytest.mark.slow
def test_float16(build: Build, export: Export, batches: list[Tensor]) -> None:
    import onnx

    half, full = export("resnet", "onnx", half=True), export("resnet", "onnx")
    _assert_equal_to_model(half, build("resnet")[1], batches, tolerance=0.05)
    types = {tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert half.stat().st_size < 0.7 * full.stat().st_size  # the backbone is most of it


@pytest.mark.slow
def test_a_file_describes_itself(export: Export) -> None:
    for export_format in ("onnx", "torchscript", "torch_export"):
        info = load_exported(export("resnet", export_format)).info
        assert (info.postprocessing, info.input_type, info.channels, info.precision) == (
            "none",
            "uint8",
            "BGR",
            "float32",
        )
        assert info.thing_classes == [0, 1]
        assert info.pixel_std == [58.0, 57.0, 57.0]
        assert info.class_names == ["0", "1", "2"]


def test_the_comparison_notices_a_difference(build: Build, export: Export, batches: list[Tensor]) -> None:
    for postprocessing in ("none", "semantic", "panoptic", "instance"):
        _, model = build("resnet")
        with torch.no_grad():
            model.sem_seg_head.predictor.class_embed.bias += torch.tensor([4.0, 0.0, 0.0, 0.0])
        errors = compare_with_model(load_exported(export("resnet", "torchscript", postprocessing)), model, batches)
        assert max(errors.values()) > 0.05, (postprocessing, errors)


def _exported(postprocessing: PostProcessing, run: Callable[[Tensor], dict[str, Tensor]]) -> Any:
    """A function in the place of a file."""
    vars(run)["info"] = SimpleNamespace(postprocessing=postprocessing, input_type="uint8")
    return run


def test_the_comparison_keeps_a_nan_of_an_earlier_batch(build: Build) -> None:
    _, model = build("resnet")
    factors = iter([math.nan, 1.0])

    def run(images: Tensor) -> dict[str, Tensor]:
        (found,) = model.predict_queries([{"image": images[0]}])
        return {"pred_logits": next(factors) * found.class_logits[None], "pred_masks": found.mask_logits[None]}

    batches = [torch.zeros(1, 3, 64, 64, dtype=torch.uint8)] * 2
    errors = compare_with_model(_exported("none", torch.no_grad()(run)), model, batches)
    assert math.isnan(errors["class logits"])
    assert errors["mask logits"] == 0


def test_the_comparison_keeps_a_nan_of_the_model(build: Build) -> None:
    _, model = build("resnet")
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias.fill_(math.nan)
    nothing = {"scores": torch.zeros(1, 0), "classes": torch.zeros(1, 0), "masks": torch.zeros(1, 0, 64, 64) > 0}
    batches = [torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
    errors = compare_with_model(_exported("instance", lambda _: nothing), model, batches)
    assert math.isnan(errors["instances"])


def test_unsuitable_images(export: Export) -> None:
    exported = load_exported(export("resnet", "torchscript"))
    with pytest.raises(ValueError, match=r"takes images \(N, 3, H, W\) of torch.uint8, got \(3, 64, 64\)"):
        exported(torch.zeros(3, 64, 64))


def test_files_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; write one with tools/export_model.py"):
        load_exported(tmp_path / "absent.onnx")
    for name, content in (("text", "not a model"), ("empty", "")):
        (tmp_path / f"{name}.onnx").write_text(content)
        with pytest.raises(ValueError, match=rf"{name}.onnx is not a model that ONNX Runtime can open"):
            load_exported(tmp_path / f"{name}.onnx")
    torch.jit.save(torch.jit.script(nn.ReLU()), str(tmp_path / "relu.pt"))
    with pytest.raises(ValueError, match=r"relu.pt is not a model that this version exported.*Export it again"):
        load_exported(tmp_path / "relu.pt")


def test_what_cannot_be_exported(build: Build, tmp_path: Path) -> None:
    cfg, model = build("resnet")
    with pytest.raises(ValueError, match="'things', expected one of none, semantic, panoptic, instance"):
        ExportGraph(model, "things")
    with pytest.raises(ValueError, match=r"in training mode.*call model.eval"):
        ExportGraph(model.train())
    model.eval()
    info = ExportInfo.from_config(cfg, model, postprocessing="none", input_type="uint8", precision="float32")
    with pytest.raises(ValueError, match="format is 'caffe', expected one of onnx, torchscript, torch_export, aoti"):
        export_graph(ExportGraph(model), tmp_path / "x", "caffe", info)
    with pytest.raises(ValueError, match=r"AOTInductor packages end in .pt2, .*name it model.pt2"):
        export_graph(ExportGraph(model), tmp_path / "model.bin", "aoti", info)
    model.size_divisibility = 0
    with pytest.raises(ValueError, match=r"multiple of 0; set MODEL.MASK_FORMER.SIZE_DIVISIBILITY to 32"):
        ExportGraph(model)
    model.size_divisibility = 32
    model.metadata = type(model.metadata)(name="classless")
    with pytest.raises(ValueError, match="'classless' does not say which of its classes are things"):
        ExportGraph(model, "panoptic")


def test_autocast_of_who_exports_is_not_in_the_file(build: Build, tmp_path: Path) -> None:
    cfg, model = build("resnet")
    info = ExportInfo.from_config(cfg, model, postprocessing="none", input_type="uint8", precision="float32")
    graph, batch = ExportGraph(model), torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        export_graph(graph, tmp_path / "model.pt", "torchscript", info)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(tmp_path / "model.pt")(batch)["pred_masks"], graph(batch)[1])


def test_input_type_of_numbers(build: Build) -> None:
    """Bytes and floats of the same values are one picture."""
    _, model = build("resnet")
    graph = ExportGraph(model)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(graph(batch), graph(batch.float()), strict=True))


@pytest.mark.parametrize("export_format", ["onnx", "torchscript", "torch_export", "aoti"])
def test_a_full_disk_leaves_the_file_that_was_there(
    export_format: ExportFormat, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importlib.import_module("torch._inductor"),
        "aoti_compile_and_package",  # takes a minute
        lambda *_, package_path, **__: package_path.write(bytes(2000)),
    )
    cfg, model = build("resnet")
    info = ExportInfo.from_config(cfg, model, postprocessing="none", input_type="float32", precision="float32")
    graph = ExportGraph(model, "none")
    graph.network = _OneConvolution(20, model.sem_seg_head.num_classes)
    path = tmp_path / "model.pt2"
    path.write_text("old")
    with disk_of(1000), pytest.raises(OSError, match=r"File too large: '.*/model\.pt2'"):
        export_graph(graph, path, export_format, info)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
