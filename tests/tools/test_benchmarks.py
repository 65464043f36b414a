"""The benchmarks of speed run, and write what they found; what that is, depends on the machine."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.evaluation.backend import has_hotcoco
from mask2former.ops._library import load_library

BENCHMARKS = Path(__file__).parents[2] / "tools" / "benchmarks"


def run(monkeypatch: pytest.MonkeyPatch, file: Path, script: str, *arguments: str) -> dict[str, Any]:
    """The figures that it writes."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / script), *arguments, "--json", str(file)])
    runpy.run_path(sys.argv[0], run_name="__main__")
    torch.set_num_threads(threads)
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures


@pytest.mark.skipif(not has_hotcoco(), reason="hotcoco is not installed")
def test_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = run(monkeypatch, tmp_path / "new" / "a.json", "evaluation.py", "--images", "2", "--rounds", "1")
    assert list(figures["seconds"]) == ["run lengths, 100 masks", "mask AP", "box AP", "PQ"]
    assert all(seconds > 0 for pair in figures["seconds"].values() for seconds in pair)


def test_mappers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(monkeypatch, tmp_path / "a.json", "mapper.py", "--rounds", "1", "--limit", "2", "--size", "128")
    assert set(figures["milliseconds"]) == {"ours", "plain", "decoding alone"}
    assert "2 images, 1 rounds, crops of 128 pixels" in capsys.readouterr().out


def test_mappers_need_both_images_and_annotations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "a.json", "mapper.py", "--images", str(tmp_path))
    assert "--images goes together with --panoptic or --instances" in capsys.readouterr().err


@pytest.mark.parametrize("masks", ["map", "bool"])
def test_loss(masks: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--size", "64", "64", "--instances", "3", "--masks", masks, "--void")
    figures = run(monkeypatch, tmp_path / "a.json", "loss.py", "--rounds", "1", *size)
    assert set(figures["seconds"]) == {"matching", "losses", "backward"}
    # Those of ten layers at once: one by one they would be about 2000.
    assert 100 < sum(figures["launches"].values()) < 450


def test_masked_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not load_library():
        pytest.skip("the native library is not built")
    figures = run(monkeypatch, tmp_path / "a.json", "masked_attention.py", "--rounds", "1", "--sides", "16")
    assert list(figures) == ["16x16, float32", "16x16, bfloat16"]
    assert figures["16x16, float32"]["native"]["error"] < 1e-5


def test_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--launches", "--rounds", "1", "--size", "64", "64", "--batch", "1", "--contenders", "ours, bfloat16")
    figures = run(monkeypatch, tmp_path / "a.json", "training_step.py", *options)
    # About 3600, 3800 with PyTorch 2.14; more than 4400 with batch norms as they are.
    assert 3500 < figures["launches"]["ours, bfloat16"] < 3900


@pytest.mark.slow
def test_operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = "256x256, batch 8, small"
    figures = run(monkeypatch, tmp_path / "a.json", "ms_deform_attn.py", "--rounds", "1", "--sizes", size)
    assert {"reference", "native, fused"} <= set(figures[size])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["inference.py", "training_step.py"])
def test_beside_transformers(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    figures = run(monkeypatch, tmp_path / "a.json", script, "--rounds", "1", "--size", "64", "96")
    assert {"ours", "transformers"} <= set(figures["seconds"])


@pytest.mark.slow
@pytest.mark.timeout(1200)  # five minutes of work, but it may get little of a machine
def test_everything(tmp_path: Path) -> None:
    for name in ("hotcoco", "transformers"):
        pytest.importorskip(name)
    subprocess.run(
        [sys.executable, BENCHMARKS / "everything.py", "--quick", "--output", tmp_path / "new", "--clock", "cpu"],
        check=True,
    )
    figures = json.loads((tmp_path / "new/results.json").read_text())
    assert set(figures) == {"operator", "inference", "inference_tuned", "training_step", "mapper", "evaluation"}
    assert (tmp_path / "new/inference.png").is_file()
