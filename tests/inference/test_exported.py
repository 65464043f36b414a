"""Exported files, loaded like any model: the same results as of the model that they were made of."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import mask2former as m2f
from mask2former import cli
from mask2former.export import (
    ExportFormat,
    ExportGraph,
    ExportInfo,
    InputType,
    PostProcessing,
    export_graph,
    is_exported,
)
from mask2former.inference.exported import open_exported
from tests.same_results import assert_alike

TASKS = ("panoptic", "instance", "semantic")
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2", "aoti": ".pt2"}
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(tiny_config: Path) -> m2f.Segmenter:
    """With thresholds that its random predictions pass."""
    test = "MODEL.MASK_FORMER.TEST."
    opts = [f"{test}OBJECT_MASK_THRESHOLD", "0.2", f"{test}OVERLAP_THRESHOLD", "0.1"]
    return m2f.load(tiny_config, optimize=False, opts=opts)


@pytest.fixture(scope="module")
def export(tiny: m2f.Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export the tiny model; every file is written once."""
    files: dict[tuple[str, ...], Path] = {}

    def _export(
        export_format: ExportFormat, postprocessing: PostProcessing = "none", input_type: InputType = "uint8"
    ) -> Path:
        key = (export_format, postprocessing, input_type)
        if key not in files:
            files[key] = tmp_path_factory.mktemp("exported") / f"model{SUFFIXES[export_format]}"
            info = ExportInfo.from_config(
                tiny.cfg, tiny.model, postprocessing=postprocessing, input_type=input_type, precision="float32"
            )
            export_graph(ExportGraph(tiny.model, postprocessing), files[key], export_format, info)
        return files[key]

    return _export


def _assert_predicts_like(path: Path, tiny: m2f.Segmenter, photograph: np.ndarray) -> m2f.Segmenter:
    model = m2f.load(path)
    pictures = [photograph, photograph[:60, :80]]
    for options in ({}, {"size": 50, "batch_size": 2}, {"size": 96, "tile": 64}):
        requests: dict[str, Any] = {"task": TASKS, "threshold": 0.3, **options}
        expected = tiny.predict(pictures, **requests)
        assert len(expected[0].panoptic.segments) > 0
        assert len(expected[0].instances) > 0
        for ours, theirs in zip(model.stream(pictures, **requests), expected, strict=True):
            assert_alike(ours, theirs)
            assert [s["category_id"] for s in ours.to_coco()] == [s["category_id"] for s in theirs.to_coco()]
    assert_alike(model.predict(photograph), tiny.predict(photograph))
    return model


def test_torchscript(export: Export, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
    model = _assert_predicts_like(export("torchscript"), tiny, photograph)
    assert model.default_tasks == ("panoptic",)
    assert model.offered_tasks == TASKS
    assert model.metadata.thing_classes == ["cat", "dog"]
    assert model.metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
    assert m2f.load(export("torchscript"), device=torch.device("cpu")).model.device.type == "cpu"


@pytest.mark.parametrize("export_format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_copied_and_pickled(
    export: Export, export_format: ExportFormat, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = export(export_format)
    monkeypatch.chdir(file.parent)
    model = m2f.load(file.name, device="cpu")
    content = pickle.dumps(model)
    assert len(content) < file.stat().st_size  # it names the file
    monkeypatch.chdir(tmp_path)
    for again in (pickle.loads(content), copy.deepcopy(model)):
        assert_alike(again.predict(photograph), model.predict(photograph))
    file.rename(file.with_name("elsewhere"))
    try:
        with pytest.raises(FileNotFoundError, match="there is no file /"):
            pickle.loads(content)
    finally:
        file.with_name("elsewhere").rename(file)


@pytest.mark.parametrize("input_type", ["uint8", "float32"])
def test_tiles_that_reach_beyond_the_picture(
    input_type: InputType, export: Export, tiny: m2f.Segmenter, photograph: np.ndarray
) -> None:
    """Beyond is the mean, which bytes cannot say: the graph puts it there."""
    options: dict[str, Any] = {"task": TASKS, "threshold": 0.2, "size": 75, "tile": 64}
    expected = tiny.predict(photograph, **options)
    assert len(expected.instances) > 0
    assert_alike(m2f.load(export("torchscript", "none", input_type)).predict(photograph, **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["onnx", "torch_export", "aoti"])
def test_other_formats(
    export_format: ExportFormat, export: Export, tiny: m2f.Segmenter, photograph: np.ndarray
) -> None:
    _assert_predicts_like(export(export_format), tiny, photograph)


@pytest.mark.parametrize("task", TASKS)
def test_postprocessing_inside(
    task: PostProcessing, export: Export, tiny: m2f.Segmenter, photograph: np.ndarray
) -> None:
    model = m2f.load(export("torchscript", task))
    assert model.default_tasks == model.offered_tasks == (task,)
    # Where the network sees the picture as it is, there is nothing to resize.
    threshold = 0.3 if task == "instance" else None
    expected = tiny.predict(photograph, task=task, size=0, threshold=threshold)
    assert_alike(model.predict(photograph, size=0, threshold=threshold), expected)
    if task == "panoptic":
        assert expected.panoptic.segments
    # Otherwise results are resized, which moves edges by a pixel or so.
    (found,), resized = model.predict([photograph], size=128), tiny.predict(photograph, task=task, size=128)
    assert found.size == (90, 120)
    if task == "semantic":
        np.testing.assert_allclose(found.semantic.scores, resized.semantic.scores, atol=0.05)
    elif task == "panoptic":
        assert (found.panoptic.ids != resized.panoptic.ids).mean() < 0.1


@pytest.mark.parametrize(
    ("postprocessing", "expected"),
    [
        ("panoptic", ["cut into tiles of 64 pixels by the model", "disconnected things are split by the model"]),
        ("semantic", ["cut into tiles of 64 pixels by the model"]),
        ("none", []),
    ],
)
def test_what_is_not_inside_is_said(
    postprocessing: PostProcessing,
    expected: list[str],
    tiny: m2f.Segmenter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts: dict[str, Any] = {"postprocessing": postprocessing, "input_type": "uint8", "precision": "float32"}
    info = ExportInfo.from_config(tiny.cfg, tiny.model, **facts)
    info = dataclasses.replace(info, tile_size=64, tile_overlap=32, split_disconnected_things=True)
    export_graph(ExportGraph(tiny.model, postprocessing), tmp_path / "a.pt", "torchscript", info)
    loaded = m2f.load(tmp_path / "a.pt")
    if postprocessing == "none":
        assert loaded.model.tiled_inference is not None
        assert loaded.model.split_disconnected_things
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == len(expected)
    assert all(part in message for part, message in zip(expected, told, strict=True))
    assert all("export with --with-postprocessing none" in message for message in told)


def test_segments_that_resizing_loses_have_no_number(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    model = m2f.load(export("torchscript", "panoptic"))
    ids = torch.zeros(1, 64, 64, dtype=torch.int32)
    ids[:, 30:, :], ids[:, 0, 0], ids[:, :20, 2:40] = 3, 1, 2
    outputs = {
        "panoptic_seg": ids,
        "segment_ids": torch.tensor([[1, 0, 2, 3, 3]]),
        "segment_classes": torch.tensor([[0, 0, 1, 2, 2]]),
        "segment_scores": torch.tensor([[0.5, 0.9, 0.6, 0.7, 0.8]]),
    }
    monkeypatch.setattr(model.model, "exported", _Fake(model.model.exported, outputs))
    result = model.predict(np.zeros((16, 16, 3), np.uint8), size=64).panoptic
    found = [(s.id, s.name, s.isthing, round(s.score, 3)) for s in result.segments]
    assert found == [(1, "dog", True, 0.6), (2, "sky", False, 0.8)]
    assert np.unique(result.ids).tolist() == [0, 1, 2]


class _Fake:
    def __init__(self, exported: Any, outputs: dict[str, torch.Tensor]) -> None:
        self.info, self.device, self.path = exported.info, exported.device, exported.path
        self._outputs = outputs

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._outputs


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("panoptic", {"task": "instance"}, r"task is instance, but .* has panoptic post-processing inside"),
        ("panoptic", {"threshold": 0.7}, r"threshold is 0\.7, but .* panoptic post-processing with 0\.2 inside"),
        ("semantic", {"tile": 64}, r"tile is 64, but .* has post-processing inside.*none"),
        ("semantic", {"task": TASKS}, r"task is panoptic and instance and semantic, but"),
        ("none", {"size": 20}, r"would see 20 x 27 pixels .* takes 33 to 16384 a side; resize it"),
    ],
)
def test_what_a_file_cannot_do(
    task: PostProcessing, options: dict[str, Any], message: str, export: Export, photograph: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=message):
        m2f.load(export("torchscript", task)).predict(photograph, **options)


def test_a_picture_of_a_wrong_size_does_not_end_the_others(export: Export, photograph: np.ndarray) -> None:
    model = m2f.load(export("torchscript"))
    errors: list[Exception] = []
    pictures = [photograph, photograph[:20], np.zeros((40, 16385, 3), np.uint8), photograph]
    results = list(model.stream(pictures, size=0, batch_size=4, on_error=errors.append))
    assert [result.size for result in results] == [photograph.shape[:2]] * 2
    for error, size in zip(errors, ("20 x 120", "40 x 16385"), strict=True):
        assert f"would see {size} pixels" in str(error)
    # Tiles reach beyond the picture.
    assert model.predict(photograph[:20], size=0, tile=64).size == (20, photograph.shape[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimize": True}, r"is an exported file, whose network .* are fixed, so optimize=True has no place"),
        ({"weights": "a.pth"}, "so weights='a.pth' has no place there"),
        ({"opts": ["INPUT.MIN_SIZE_TEST", "5"]}, "so opts=.*has no place there"),
        ({"device": "cuda:1"}, r"was exported on 'cpu' and runs nowhere else, but the device is 'cuda:1'"),
    ],
)
def test_what_cannot_be_changed(export: Export, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        m2f.load(export("torchscript"), **options)


def test_it_cannot_be_trained(export: Export) -> None:
    model = open_exported(export("torchscript")).model
    with pytest.raises(ValueError, match=r"no criterion and cannot be trained; call model\.eval"):
        model.train()([{"image": torch.zeros(3, 64, 64)}])


def test_checkpoints_are_not_taken_for_exported_files(export: Export, tiny_config: Path, tmp_path: Path) -> None:
    assert is_exported(export("torchscript"))
    assert not is_exported(tiny_config.parent / "model.pth")
    assert not is_exported(tiny_config)
    assert not is_exported(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.onnx; write one with"):
        m2f.load(tmp_path / "absent.onnx")


def test_command_line(
    export: Export, photograph: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    words = ["predict", str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--model"]
    assert cli.main([*words, str(export("torchscript"))]) == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["segments"]
    assert cli.main([*words, str(export("torchscript", "semantic")), "--task", "panoptic"]) == 1
    assert "has semantic post-processing inside" in capsys.readouterr().err
