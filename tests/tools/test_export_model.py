"""The command that exports and checks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from mask2former.export import load_exported
from mask2former.inference import exporting
from tools import export_model

Files = tuple[CfgNode, Path]


def _run(folder: Path, *options: str) -> None:
    config = ["--config-file", str(folder / "config.yaml")]
    pictures = ["--images", str(folder / "pictures")]
    export_model.main(
        [*config, "--format", "torchscript", "--output", str(folder / "out/model.pt"), *pictures, *options]
    )


@pytest.mark.timeout(1800)
def test_exports_and_prints_the_error(tiny_files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = tiny_files
    _run(folder, "--with-postprocessing", "semantic", "--input-type", "float32")
    printed = capsys.readouterr().out
    assert "Maximal error of the class scores: " in printed
    # Shorter edges of 64, each picture with its mirror image.
    assert "Checked on pictures: 2 of 64 x 110, 2 of 96 x 64" in printed
    info = load_exported(folder / "out/model.pt").info
    assert (info.postprocessing, info.input_type) == ("semantic", "float32")


@pytest.mark.timeout(1800)
def test_fails_where_the_file_computes_something_else(tiny_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = tiny_files

    def spoil_and_export(graph: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        bias = graph.network.sem_seg_head.predictor.class_embed.bias
        with torch.no_grad():
            bias[0] += 2
            export(graph, *arguments, **options)
            bias[0] -= 2

    export = exporting.export_graph
    monkeypatch.setattr(exporting, "export_graph", spoil_and_export)
    with pytest.raises(ValueError, match=r"model\.pt does not compute what the model computes \(pictures: 2 of"):
        _run(folder, "--check-pictures", "1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "dynamic"], "--quantize makes 8-bit ONNX of float32: choose --format onnx"),
        (["--format", "onnx", "--quantize", "static"], "--quantize static needs --calibration-images"),
        (["--calibration-images", "x"], "--calibration-images are read by --quantize static only"),
        (["--check-pictures", "0"], "--check-pictures is 0, expected at least 1"),
        (["--float-layers", "backbone.stem"], "--float-layers are read by --quantize only"),
        (["--opts", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["--opts", "MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS: there is no file nowhere.pth"),
    ],
)
def test_mistakes_are_told_before_the_export(
    tiny_files: Files, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(exporting, "export_graph", lambda *_, **__: pytest.fail("exported"))
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}"):
        _run(tiny_files[1], *options)
