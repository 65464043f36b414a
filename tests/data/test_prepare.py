"""The helpers of the scripts that prepare data sets."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.prepare import Job, present, run_script, whole_file, write_image, write_json
from mask2former.processors import count_usable_cores


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new/folder/a.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists()
        assert unfinished.suffix == ".txt"
    assert path.read_text() == "half"
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_error_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_images_and_json(tmp_path):
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    write_image(tmp_path / "a.tif", pixels)
    write_image(tmp_path / "a.png", pixels.astype(np.uint8))
    write_json(tmp_path / "a.json", {"a": [1]})
    np.testing.assert_array_equal(Image.open(tmp_path / "a.tif"), pixels)
    np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), pixels.astype(np.uint8))
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}


def test_only_what_is_missing_is_done(tmp_path):
    for name in "ac":
        (tmp_path / name).touch()
    assert Job(tmp_path, 1).missing("abcd", lambda name: tmp_path / name) == ["b", "d"]
    assert Job(tmp_path, 1, overwrite=True).missing("abcd", lambda name: tmp_path / name) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers, tmp_path):
    results = Job(tmp_path, workers).map(partial(pow, 2), range(20), "Squaring")
    assert results == [2**i for i in range(20)]
    assert Job(tmp_path, workers).map(partial(pow, 2), [], "Nothing") == []


def test_two_processes_are_used(tmp_path):
    assert os.getpid() not in Job(tmp_path, 2).map(_pid, range(4), "Asking")


def _pid(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_process_is_raised(workers, tmp_path):
    with pytest.raises(ValueError, match="invalid literal"):
        Job(tmp_path, workers).map(int, ["1", "x", "3"], "Reading")


def test_splits_that_are_there(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    splits = {"train": [tmp_path / "a"], "val": [tmp_path / "a", tmp_path / "b"]}
    assert present(splits, "Get it.") == ["train"]
    assert capsys.readouterr().out == f"Leaving out val, for there is no {tmp_path / 'b'}.\n"
    with pytest.raises(
        FileNotFoundError, match=r"not found: .*/b, .*/c. Get it. Set DETECTRON2_DATASETS \(or --root\)"
    ):
        present({"train": [tmp_path / "b"], "val": [tmp_path / "a", tmp_path / "c"]}, "Get it.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Job(Path("/data"), count_usable_cores())),
        (["--root", "~/x", "--workers", "3", "--overwrite"], Job(Path("~/x").expanduser(), 3, True)),
    ],
)
def test_command_line(arguments, expected, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    monkeypatch.setattr(sys, "argv", ["prepare_it.py", *arguments])
    jobs = []
    run_script(jobs.append, "Makes it.")
    assert jobs == [expected]


@pytest.mark.parametrize("kind", [ValueError, NotADirectoryError])
def test_errors_are_one_line(monkeypatch, kind):
    def fail(job: Job) -> None:
        raise kind("a.png: is damaged.")

    monkeypatch.setattr(sys, "argv", ["there/prepare_it.py"])
    with pytest.raises(SystemExit, match=r"^prepare_it.py: a.png: is damaged.$"):
        run_script(fail, "Makes it.")
