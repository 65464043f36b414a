"""Exported models pass through the evaluators like the models that they were made of."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former.engine import Trainer, load_config
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from mask2former.export import ExportGraph, ExportInfo, InputType, PostProcessing, export_graph
from tools import evaluate_exported

Files = tuple[CfgNode, Path]


@pytest.fixture
def toy(tmp_path: Path) -> ModuleType:
    """The toy data set of the engine's tests, written and registered."""
    if "toy" not in sys.modules:  # its model can be registered once only
        spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "engine" / "toy.py")
        sys.modules["toy"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["toy"])
    toy = sys.modules["toy"]
    toy.write_dataset(tmp_path / "toy", images=3)
    toy.register_dataset(tmp_path / "toy", name="exported_toy")
    return toy


def _options(folder: Path) -> list[str]:
    names = ["DATASETS.TRAIN", "('exported_toy',)", "DATASETS.TEST", "('exported_toy',)", "DATALOADER.NUM_WORKERS", "0"]
    return [*names, "OUTPUT_DIR", str(folder / "out"), "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True"]


def _export(folder: Path, input_type: InputType = "uint8", postprocessing: PostProcessing = "none") -> Path:
    cfg = load_config(str(folder / "config.yaml"), _options(folder))
    model = build_model(cfg).eval()
    Mask2FormerCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    info = ExportInfo.from_config(cfg, model, postprocessing=postprocessing, input_type=input_type, precision="float32")
    path = folder / f"{input_type}_{postprocessing}.pt"
    export_graph(ExportGraph(model, postprocessing), path, "torchscript", info)
    return path


@pytest.mark.timeout(1800)
def test_metrics_are_those_of_the_model(tiny_files: Files, toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = tiny_files
    cfg = load_config(str(folder / "config.yaml"), _options(folder))
    model = build_model(cfg)
    Mask2FormerCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    expected = Trainer.test(cfg, model)
    path = _export(folder, "float32")

    options = ["--config-file", str(folder / "config.yaml"), str(path), "--opts", *_options(folder)]
    evaluate_exported.main(options)
    lines = capsys.readouterr().out.strip().splitlines()[-3:]
    titles, values = ([cell.strip() for cell in line.strip("| ").split("|")] for line in (lines[0], lines[2]))
    assert values[0] == str(path)
    found = dict(zip(titles[1:], map(float, values[1:]), strict=True))
    assert {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"} <= found.keys()
    for name, value in found.items():
        task, metric = name.split("/")
        assert value == pytest.approx(expected[task][metric], abs=0.02, nan_ok=True), name
    assert found["sem_seg/mIoU"] > 0


@pytest.mark.timeout(1800)
def test_files_that_evaluators_cannot_use(tiny_files: Files, toy: ModuleType) -> None:
    _, folder = tiny_files
    inside = _export(folder, postprocessing="semantic")
    config = ["--config-file", str(folder / "config.yaml")]
    with pytest.raises(ValueError, match=r"semantic post-processing inside.*with --with-postprocessing none"):
        evaluate_exported.main([*config, str(inside), "--opts", *_options(folder)])
    raw = _export(folder)
    with pytest.raises(ValueError, match=r"normalises with mean \[.*give the configuration that was exported"):
        evaluate_exported.main([*config, str(raw), "--opts", *_options(folder), "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"])
    with pytest.raises(ValueError, match="has 3 classes, the configuration 7"):
        evaluate_exported.main([*config, str(raw), "--opts", *_options(folder), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"])


def test_the_table_shows_changes_from_the_first_file() -> None:
    results = {"a.onnx": {"pq/PQ": 50.0, "segm/AP": float("nan")}, "b.onnx": {"pq/PQ": 48.75, "segm/AP": float("nan")}}
    lines = evaluate_exported.markdown_table(results).splitlines()
    assert lines[0] == "| file | pq/PQ | segm/AP |"
    assert lines[2:] == ["| a.onnx | 50.00 | nan |", "| b.onnx | 48.75 (-1.25) | nan |"]
