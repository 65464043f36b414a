"""Whole jobs: results are those of single pictures, whatever is killed, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import portalocker
import pytest
import torch

import mask2former as m2f
from mask2former.data.panoptic_png import read_panoptic_png
from mask2former.inference.many import Done, Settings, Workers, job, predict_many, read_results
from mask2former.inference.many.parts import Parts
from mask2former.inference.many.processes import run_processes
from mask2former.inference.many.shards import Shard
from mask2former.inference.many.worker import Worker
from mask2former.inference.pictures import Picture
from mask2former.inference.segmenter import Segmenter
from tests.inference.many.conftest import a_killer


def found(output: Path) -> dict[str, Any]:
    return {record["file_name"]: record["annotations"] for record in read_results(output)}


def times(output: Path) -> dict[str, int]:
    """When each part was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (output / "parts").glob("[0-9]*/results.jsonl")}


def test_in_this_process(settings: Settings, pictures: Path, tmp_path: Path, truth: dict[str, Any]) -> None:
    out = tmp_path / "out"
    assert predict_many(pictures, out, settings, Workers(), part_size=5) == Done(3, 0, 0)
    assert found(out) == truth
    assert sum(map(len, truth.values())) > 12
    assert list(found(out)) == sorted(truth)  # in order
    before = times(out)
    assert predict_many(pictures, out, settings, Workers(), part_size=5) == Done(3, 3, 0)
    assert times(out) == before


def test_workers_may_begin_in_another_folder(
    settings: Settings, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(settings: Settings, output: Path, shards: Sequence[Shard], *_: Any) -> Iterator[int]:
        monkeypatch.chdir("/")
        return run_processes(settings, output, shards, 1)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "run_ray", elsewhere)
    assert predict_many(Path(pictures.name), tmp_path / "out", settings, Workers(ray="auto")) == Done(1, 0, 0)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "count_usable_cores", lambda: 8)
    threads = [job._threads(workers) for workers in (Workers(), Workers(3), Workers(9))]
    assert threads == [8, 2, 1]
    assert [job._threads(Workers(3, "auto", cpus)) for cpus in (4, 0.5)] == [4, 1]


def test_a_worker_has_the_threads_that_it_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former.inference.many.worker.Segmenter", lambda cfg: None)
    for threads in (2, 0):  # 0 leaves them as they are
        Worker(replace(settings, threads=threads), tmp_path)
        assert torch.get_num_threads() == 2


def test_maps_of_segments(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    model = m2f.load(settings.model)
    for task in ("panoptic", "semantic"):
        out = tmp_path / task
        predict_many(pictures, out, replace(settings, task=task, threshold=0.0), Workers())
        records = list(read_results(out))
        assert len(records) == 12
        for record in records[::4]:
            result = model.predict(pictures / record["file_name"], task=task, threshold=0.0)
            segments = result.to_coco(record["image_id"])
            for segment in segments:
                del segment["segmentation"], segment["image_id"]
            assert record["segments_info"] == segments
            assert segments
            if task == "panoptic":
                ids = read_panoptic_png(out / record["png"], result.size)
                np.testing.assert_array_equal(ids, result.panoptic.ids)
            else:
                ids = cv2.imread(str(out / record["png"]), cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(ids, result.semantic.labels + 1)


def test_bad_pictures_are_listed(settings: Settings, pictures: Path, tmp_path: Path, truth: dict[str, Any]) -> None:
    damaged = pictures / "04.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (pictures / "05.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text("\n".join([f"{i:02d}.png" for i in range(9)] + ["absent.png"]))
    for batch_size in (1, 4):
        out = tmp_path / f"out{batch_size}"
        chosen = replace(settings, batch_size=batch_size)
        assert predict_many(tmp_path / "list.txt", out, chosen, Workers(), images=pictures, part_size=8).bad == 3
        bad = [json.loads(line) for line in (out / "bad_pictures.jsonl").read_text().splitlines()]
        assert {entry["image_id"]: entry["file_name"] for entry in bad} == {
            5: "04.png",
            6: "05.png",
            10: "absent.png",
        }
        assert all(entry["error"] for entry in bad)
        # In a batch, sums are of another order, so that scores differ in the last digit.
        counts = {name: len(segments) for name, segments in found(out).items()}
        assert counts == {name: len(truth[name]) for name in counts}
        assert len(counts) == 7


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pictures_that_the_model_does_not_take_are_listed(
    settings: Settings, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """Which shows when they have been read: between others, and at the end of a part."""

    def refuse_wide(_: Segmenter, request: object, picture: Picture, seen: tuple[int, int]) -> None:
        if seen[0] < seen[1] * 0.8:
            raise ValueError(f"{picture.path}: too wide")

    monkeypatch.setattr(Segmenter, "_check_side", refuse_wide)
    out, chosen = tmp_path / "out", replace(settings, batch_size=batch_size)
    assert predict_many(pictures, out, chosen, Workers()) == Done(1, 0, 6)
    names = [path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.png"))]
    assert list(found(out)) == names[::2]
    bad = [json.loads(line) for line in (out / "bad_pictures.jsonl").read_text().splitlines()]
    assert bad == [
        {"image_id": i, "file_name": name, "error": f"{name}: too wide"}
        for i, name in enumerate(names, 1)
        if i % 2 == 0
    ]


def test_a_worker_is_killed(settings: Settings, pictures: Path, tmp_path: Path, truth: dict[str, Any]) -> None:
    out = tmp_path / "out"
    with a_killer(out) as killed:
        assert predict_many(pictures, out, settings, Workers(2), part_size=2) == Done(6, 0, 0)
    assert len(killed) == 1
    assert found(out) == truth
    assert sorted(path.name for path in (out / "parts").iterdir()) == [f"{i:06d}" for i in range(6)]


def test_workers_are_killed_again_and_again(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = r"(?s)workers were lost 3 times without finishing a part.*1 parts are left, 0 the first"
    with a_killer(out, number=3) as killed, pytest.raises(RuntimeError, match=message):
        predict_many(pictures, out, settings, Workers(2))
    assert len(killed) == 3


def test_the_whole_job_is_killed(
    settings: Settings, pictures: Path, tmp_path: Path, truth: dict[str, Any], repository: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, repository / "tools/predict_dataset.py", pictures, "--output", out, "--part-size", 1]
    options = ["--task", "instance", "--threshold", 0.1, "--workers", 2, "--threads", 1]
    words = [*command, *options, "--model", settings.model]
    process = subprocess.Popen([*map(str, words)], cwd=repository)
    while len(Parts(out).unfinished(range(12))) > 9:
        assert process.poll() is None
        time.sleep(0.01)
    workers = {int(path.name.split(".")[2]) for path in (out / "parts").glob(".0*")}
    process.send_signal(signal.SIGKILL)
    process.wait()
    for worker in workers:
        _wait_for_end(worker)
    before = times(out)
    finished = 12 - len(Parts(out).unfinished(range(12)))
    assert 3 <= finished < 12
    assert predict_many(pictures, out, settings, Workers(), part_size=1) == Done(12, finished, 0)
    assert times(out).items() >= before.items()
    assert found(out) == truth
    assert not list((out / "parts").glob(".*"))


def _wait_for_end(pid: int) -> None:
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} outlives its parent")


def test_another_job_is_refused(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_many(pictures, out, settings, Workers())
    weights = tmp_path / "other.pth"
    weights.write_bytes(Path(m2f.load(settings.model).cfg.MODEL.WEIGHTS).read_bytes() + b" ")
    others = {
        r"threshold \(was 0\.1, now 0\.2\)": {"threshold": 0.2},
        r"task \(was 'instance', now 'panoptic'\)": {"task": "panoptic"},
        r"MODEL\.MASK_FORMER\.DEC_LAYERS \(was 2, now 3\)": {"opts": ("MODEL.MASK_FORMER.DEC_LAYERS", "3")},
        r"weights\.sha256 \(was": {"weights": str(weights)},
    }
    for message, change in others.items():
        with pytest.raises(ValueError, match=rf"has results of another job, which differs in {message}"):
            predict_many(pictures, out, replace(settings, **change), Workers())
    with pytest.raises(ValueError, match=r"differs in pictures\.parts \(was 1, now 4\); pictures\.sha256"):
        predict_many(pictures, out, settings, Workers(), part_size=3)
    weights.write_bytes(weights.read_bytes()[:-1])
    same = ("OUTPUT_DIR", "elsewhere", "MODEL.DEVICE", "cpu:0", "MODEL.WEIGHTS", str(weights))
    assert predict_many(pictures, out, replace(settings, opts=same, batch_size=2), Workers()) == Done(1, 1, 0)
    (pictures / "00.png").unlink()
    with pytest.raises(ValueError, match=r"differs in pictures\.sha256"):
        predict_many(pictures, out, settings, Workers())


def test_errors_before_anything_is_done(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="threshold is 3, expected 0 to 1"):
        predict_many(pictures, out, replace(settings, threshold=3), Workers())
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.pth"):
        predict_many(pictures, out, replace(settings, weights="nowhere.pth"), Workers())
    with pytest.raises(ValueError, match="--workers is 0, expected at least 1"):
        predict_many(pictures, out, settings, Workers(0))
    assert not (out / "manifest.json").exists()
    with (
        portalocker.Lock(out / ".lock", timeout=0, fail_when_locked=True),
        pytest.raises(ValueError, match="another process is working on it"),
    ):
        predict_many(pictures, out, settings, Workers())
    (out / "parts/000000").mkdir()
    with pytest.raises(ValueError, match=r"has parts, but no manifest\.json"):
        predict_many(pictures, out, settings, Workers())


def test_an_error_of_the_model_ends_the_job(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "wrong.pth"
    weights.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"wrong\.pth cannot be read"):
        predict_many(pictures, tmp_path / "out", replace(settings, weights=str(weights)), Workers(2), part_size=2)
