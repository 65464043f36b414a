"""``mask2former benchmark``: what it measures adds up, and it says of which predictions."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import mask2former as m2f
from mask2former import cli
from mask2former.export import ExportGraph, ExportInfo, PostProcessing, export_graph
from mask2former.inference.benchmark import PARTS, Benchmark, _watched, sure_predictions, time_models
from mask2former.inference.benchmark_command import _load_models, _name, _plan, add_benchmark_arguments
from mask2former.modeling.postprocessing import MaskGeometry, panoptic_inference
from tests.small_disk import disk_of

FAST = ["--size", "64x96", "--rounds", "2", "--warm-up", "1"]


@pytest.fixture(scope="module")
def tiny(tiny_config: Path) -> m2f.Segmenter:
    return m2f.load(tiny_config, optimize=False)


@pytest.fixture(scope="module")
def files(tiny: m2f.Segmenter, tmp_path_factory: pytest.TempPathFactory) -> dict[PostProcessing, Path]:
    """The model as TorchScript, without and with post-processing."""
    paths: dict[PostProcessing, Path] = {}
    for kind in ("none", "panoptic"):
        paths[kind] = tmp_path_factory.mktemp("files") / "model.pt"
        info = ExportInfo.from_config(
            tiny.cfg, tiny.model, postprocessing=kind, input_type="uint8", precision="float32"
        )
        export_graph(ExportGraph(tiny.model, kind), paths[kind], "torchscript", info)
    return paths


def _run(folder: Path, *words: str) -> dict:
    assert cli.main(["benchmark", *words, *FAST, "--json", str(folder / "out" / "t.json")]) == 0
    results: dict = json.loads((folder / "out" / "t.json").read_text())
    for seconds in results["seconds"].values():
        assert tuple(seconds) == PARTS
        assert all(value > 0 for value in seconds.values())
    return results


def test_plain_and_optimized(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = _run(tmp_path, str(tiny_config), "--optimize", "--batch", "2")
    assert list(results["seconds"]) == ["plain", "optimized"]
    assert results["picture"] == {"path": None, "size": [64, 96]}
    assert results["predictions"].startswith("made up")
    printed = capsys.readouterr().out
    assert "noise, 96 x 64 pixels, task panoptic, 2 at a time, predictions made up" in printed
    table = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in table[0]] == ["", *PARTS, "times as fast"]
    assert [row[0].strip() for row in table[2:]] == ["plain", "optimized"]
    milliseconds = 1000 * results["seconds"]["plain"]["whole picture"]
    assert float(table[2][4]) == pytest.approx(milliseconds, abs=0.06)


def test_a_picture_of_one_s_own(tiny_config: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    results = _run(tmp_path, str(tiny_config), "--image", str(tmp_path / "a.png"), "--task", "instance")
    assert results["predictions"] == "the model's own"
    assert results["options"]["task"] == ["instance"]


def test_untrained(tiny_config: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    words = ["--image", str(tmp_path / "a.png"), "--untrained", "--opts", "MODEL.WEIGHTS", "nowhere.pth"]
    assert cli.main(["benchmark", *FAST, "--json", str(tmp_path / "t.json"), str(tiny_config), *words]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["predictions"].startswith("made up")


def parsed(*words: str, **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_benchmark_arguments(parser)
    parser.set_defaults(**{"weights": None, "device": None, "opts": [], **more})
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "name", "dtype", "mode"),
    [
        (["--optimize"], "optimized", "float32", "none"),
        (["--dtype", "bfloat16"], "optimized, bfloat16", "bfloat16", "none"),
        (["--compile"], "optimized, compiled", "float32", "default"),
    ],
)
def test_the_faster_model_is_beside_the_plain_one(
    tiny_config: Path, words: list[str], name: str, dtype: str, mode: str
) -> None:
    models = _load_models(parsed(*words, "--untrained", model=str(tiny_config), device="cpu"))
    inference = {way: model.cfg.MODEL.INFERENCE for way, model in models.items()}
    found = {way: (keys.OPTIMIZE, keys.DTYPE, keys.COMPILE) for way, keys in inference.items()}
    assert found == {"plain": (False, "float32", "none"), name: (True, dtype, mode)}


def test_what_is_timed(tiny: m2f.Segmenter, photograph: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photograph)
    image = ["--image", str(tmp_path / "a.png")]
    noise = _plan(parsed(), tiny)
    assert (noise.picture.shape, noise.options["size"], noise.own_predictions) == ((800, 1216, 3), 0, False)
    assert (noise.rounds, noise.warm_up) == (10, 2)
    as_for_a_test = _plan(parsed(*image, "--warm-up", "0", "--tile", "64"), tiny)
    np.testing.assert_array_equal(as_for_a_test.picture, photograph[:, :, ::-1])
    assert "size" not in as_for_a_test.options
    assert (as_for_a_test.warm_up, as_for_a_test.options["tile"]) == (0, 64)
    resized = _plan(parsed(*image, "--size", "40x70"), tiny)
    assert (resized.picture.shape, resized.options["size"], resized.own_predictions) == ((40, 70, 3), 0, True)


@pytest.mark.parametrize(("postprocessing", "says"), [("none", "made up"), ("panoptic", "of the file, whose network")])
def test_exported_files(
    postprocessing: PostProcessing, says: str, files: dict[PostProcessing, Path], tmp_path: Path
) -> None:
    results = _run(tmp_path, str(files[postprocessing]))
    assert list(results["seconds"]) == ["model.pt"]
    assert results["predictions"].startswith(says)
    assert results["file"]


def test_time_goes_to_the_part_that_takes_it(
    tiny: m2f.Segmenter, files: dict[PostProcessing, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that sleeps, in tiles of which there are two runs; and a file."""
    exported = m2f.load(files["none"])
    for owner, name in ((tiny.model, "run_network"), (exported.model.sem_seg_head.exported, "_run")):
        monkeypatch.setattr(owner, name, _slowly(getattr(owner, name)))
    picture = np.zeros((64, 180, 3), np.uint8)
    benchmark = Benchmark(options={"size": 0, "tile": 64}, picture=picture, own_predictions=True, rounds=1, warm_up=0)
    before = dict(vars(tiny.model))
    for model in (tiny, exported):
        (seconds,) = time_models({"it": model}, benchmark).values()
        assert seconds["network"] > 0.4, "five tiles, four at a time"
        assert sum(seconds[part] for part in PARTS[:3]) == pytest.approx(seconds["whole picture"])
    assert vars(tiny.model) == before, "as if nobody had looked"


def test_the_gpu_with_the_images_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the current one."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    model: Any = SimpleNamespace(run_network=lambda images: {})
    with torch._subclasses.FakeTensorMode():
        images = torch.zeros(1, 3, 8, 8, device="cuda:1")
        with _watched(SimpleNamespace(model=model), own_predictions=True) as spans:  # type: ignore[arg-type]
            model.run_network(images)
    assert waited == [torch.device("cuda:1")] * 2
    assert len(spans) == 1


def _slowly(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def slow(images: Tensor) -> Any:
        time.sleep(0.2)
        return run(images)

    return slow


def test_made_up_predictions_give_post_processing_something_to_do() -> None:
    made = sure_predictions(100, 133, (50, 76))
    assert made["pred_logits"].shape == (1, 100, 134)
    assert made["pred_masks"].shape == (1, 100, 50, 76)
    probable = made["pred_logits"][0].softmax(-1)[:, :-1].amax(-1)
    assert (probable > 0.9).sum() == 25
    _, segments = panoptic_inference(
        made["pred_logits"][0],
        made["pred_masks"][0],
        MaskGeometry((200, 304), (200, 304), (200, 304)),
        thing_classes=range(80),
        object_mask_threshold=0.5,
        overlap_threshold=0.5,
    )
    assert len(segments) > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "absent.png"], "absent.png"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--tile", "100"], "tiles of 100 pixels"),
        (["--compile", "reduce-overhead"], "'reduce-overhead', which records CUDA graphs"),
    ],
)
def test_errors_have_one_line(
    tiny_config: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["benchmark", str(tiny_config), *FAST, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    "words",
    [
        ["--optimize"],
        ["--dtype", "bfloat16"],
        ["--compile"],
        ["--untrained"],
        ["--weights", "a.pth"],
        ["--opts", "INPUT.MIN_SIZE_TEST", "9"],
    ],
)
def test_files_are_timed_as_they_are(
    files: dict[PostProcessing, Path], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["benchmark", str(files["none"]), *FAST, *words]) == 1
    assert "is an exported file, which is timed as it is; leave --optimize" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("none", "optimized, bfloat16"),
        ("default", "optimized, bfloat16, compiled"),
        ("reduce-overhead", "optimized, bfloat16, compiled, CUDA graphs"),
    ],
)
def test_names_of_faster_models(mode: str, name: str) -> None:
    """On a GPU, those that are not compiled have graphs too."""
    assert _name(argparse.Namespace(dtype="bfloat16", compile=mode)) == name


def test_threads(tiny_config: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert _run(tmp_path, str(tiny_config), "--threads", "2")["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_sizes_are_two_numbers(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["benchmark", str(tiny_config), "--size", "640"])
    assert "'640' is not a size; write height x width, such as 800x1216" in capsys.readouterr().err


def test_a_full_disk(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk_of(10):
        assert cli.main(["benchmark", *FAST, "--json", str(tmp_path / "t.json"), str(tiny_config)]) == 1
    assert f"error: {tmp_path / 't.json'}: cannot be written (File too large)" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
