"""``mask2former export``: the command; tests/tools/test_export_model.py has what it shares with the tool."""

import re
from argparse import ArgumentParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T

import mask2former as m2f
from mask2former import cli
from mask2former.data.augmentation import build_test_augmentations
from mask2former.engine.setup import load_config
from mask2former.export import ExportInfo, load_exported
from mask2former.image_io import read_image
from mask2former.inference import exporting
from tests.same_results import assert_alike


@pytest.fixture
def picture(photograph: np.ndarray, tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    return tmp_path / "a.png"


def test_command(tiny_config: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "model.pt"
    words = ["export", str(tiny_config), "--format", "torchscript", "--output", str(path), "--images", str(picture)]
    size = ["INPUT.MIN_SIZE_TEST", "80"]
    assert cli.main([*words, "--opts", *size]) == 0
    printed = capsys.readouterr().out
    assert f"Wrote {path} (" in printed
    assert "Maximal error of the mask logits: " in printed
    assert "Checked on pictures: 2 of 107 x 80" in printed
    assert "Note: " not in printed
    found, expected = (m2f.load(x, opts=opts).predict(picture) for x, opts in ((path, ()), (tiny_config, size)))
    assert_alike(found, expected)


def test_half_precision(tiny_config: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pt"
    words = ["--format", "torchscript", "--output", str(path), "--images", str(picture), "--half"]
    assert cli.main(["export", str(tiny_config), *words, "--opts", "INPUT.MIN_SIZE_TEST", "80"]) == 0
    tolerances = re.findall(r"error of the .*: (\S+) \(tolerance (\S+)\)", capsys.readouterr().out)
    assert tolerances
    assert all(1e-5 < float(error) < float(tolerance) == 0.05 for error, tolerance in tolerances)
    assert load_exported(path).info.precision == "float16"


def test_a_folder_that_is_not_ones_own(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch would say so after the minutes that an export takes, and not as an OSError."""
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cli.main(["export", str(tiny_config), "--format", "torchscript", "--output", str(tmp_path / "m.pt")]) == 1
    assert f"error: {tmp_path}: nothing may be written into this folder" in capsys.readouterr().err


def test_what_a_program_must_do_by_itself_is_said(
    tiny_config: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--format", "torchscript", "--output", str(tmp_path / "m.pt"), "--images", str(picture)]
    test = "MODEL.MASK_FORMER.TEST."
    keys = [f"{test}TILE_SIZE", "64", f"{test}TILE_OVERLAP", "32", f"{test}SPLIT_DISCONNECTED_THINGS", "True"]
    assert cli.main(["export", str(tiny_config), *words, "--with-postprocessing", "panoptic", "--opts", *keys]) == 0
    printed = capsys.readouterr().out
    assert "Note: the model is used in tiles" in printed
    assert "Note: the model splits disconnected things" in printed


@pytest.mark.parametrize(
    ("words", "noted"),
    [([], True), (["--no-grid-sample"], False), (["--quantize", "dynamic"], False), (["--format", "aoti"], False)],
)
def test_whom_grid_sample_is_not_for(
    tiny_config: Path, words: list[str], noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    exporting.add_export_arguments(parser)
    model = m2f.load(tiny_config)
    info = ExportInfo.from_config(
        model.cfg, model.model, postprocessing="none", input_type="uint8", precision="float32"
    )
    exporting._print_notes(info, parser.parse_args(["--output", "m.onnx", *words]))
    assert ("for TensorRT and WebGPU" in capsys.readouterr().out) == noted


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("tiny", ["--quantize", "dynamic", "--format", "aoti"], "--quantize makes 8-bit ONNX"),
        ("tiny", ["--weights", "nowhere.pth"], "there is no file nowhere.pth"),
        ("coco/panoptik/R50", [], "there is no model 'coco/panoptik/R50'"),
        ("tiny", ["--format", "torchscript", "--images", "nothing.png"], "nothing.png: no such picture or folder"),
        ("tiny", ["--quantize", "static", "--calibration-images", "nothing"], "nothing: no such picture or folder"),
        ("tiny", ["--output", "."], "--output . is a folder, expected the file to write"),
        ("tiny", ["--output", "model.pth"], "the name of an ONNX file ends in .onnx"),
        ("tiny", ["--format", "torchscript", "--tolerance", "-1"], "check with yours (--images)"),
    ],
)
def test_errors_have_one_line(
    tiny_config: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    words: list[str],
    message: str,
) -> None:
    given = [str(tiny_config) if model == "tiny" else model, "--output", str(tmp_path / "m.onnx")]
    assert cli.main(["export", *given, "--images", str(picture), *words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def resized_for_a_test(cfg: CfgNode, picture: np.ndarray) -> np.ndarray:
    aug_input = T.AugInput(picture)
    T.AugmentationList(build_test_augmentations(cfg))(aug_input)
    return aug_input.image


@pytest.mark.parametrize("format", ["RGB", "L"])
@pytest.mark.parametrize("keys", [["INPUT.TEST_SCALE", "0.5"], ["INPUT.MIN_SIZE_TEST", "0"], []])
def test_pictures_to_check_with_are_resized_as_for_a_test(
    tiny_config: Path, picture: Path, photograph: np.ndarray, keys: list[str], format: str
) -> None:
    statistics = [] if format == "RGB" else ["MODEL.PIXEL_MEAN", "[1.0]", "MODEL.PIXEL_STD", "[1.0]"]
    cfg = load_config(str(tiny_config), ["INPUT.FORMAT", format, *statistics, *keys])
    (batch,) = exporting._batches_of_pictures(picture, cfg)
    expected = resized_for_a_test(cfg, read_image(picture, format))
    np.testing.assert_array_equal(batch[0].permute(1, 2, 0), np.atleast_3d(expected))
    np.testing.assert_array_equal(batch[1], batch[0].flip(-1))
    (small,) = exporting._batches_of_pictures(picture, cfg, longest=48)
    assert small.shape == (2, len(batch[0]), 36, 48)


@pytest.mark.parametrize(("tile_size", "count"), [(0, 1), (96, 1), (64, 4)])
def test_calibration_shows_what_the_network_will_see(
    tiny_config: Path, picture: Path, photograph: np.ndarray, tile_size: int, count: int
) -> None:
    """A picture of 96 x 72, whole or in tiles, each with its mirror image."""
    test = "MODEL.MASK_FORMER.TEST."
    keys = [f"{test}TILE_SIZE", str(tile_size), f"{test}TILE_OVERLAP", "32", "INPUT.MIN_SIZE_TEST", "72"]
    model = m2f.load(tiny_config, opts=keys)
    info = ExportInfo.from_config(
        model.cfg, model.model, postprocessing="none", input_type="uint8", precision="float32"
    )
    batches = list(exporting._calibration_batches(picture, model.cfg, info))
    assert len(batches) == count
    resized = resized_for_a_test(model.cfg, photograph[:, :, ::-1]).transpose(2, 0, 1)
    assert resized.shape == (3, 72, 96)
    side = tile_size or 96
    expected = resized if count == 1 else resized[:, :side, :side]
    np.testing.assert_array_equal(batches[0][0], expected)
    assert all(batch.shape[0] == 2 and max(batch.shape[2:]) <= side for batch in batches)
    seen = np.unique(np.concatenate([batch.ravel() for batch in batches]))
    np.testing.assert_array_equal(seen, np.unique(resized))


def test_what_is_no_picture_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "Thumbs.db").write_text("of Windows")
    cv2.imwrite(str(tmp_path / "A.PNG"), np.zeros((3, 4, 3), np.uint8))
    assert [picture.shape for picture in exporting._pictures(tmp_path, "RGB")] == [(3, 4, 3)]


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there are no pictures in"):
        next(exporting._pictures(tmp_path, "RGB"))


def test_pictures_of_scikit_image() -> None:
    pytest.importorskip("skimage")
    pictures = list(exporting._pictures(None, "BGR"))
    assert len({picture.shape for picture in pictures}) > 1, "several sizes"
