"""Folders that are made once."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from mask2former.data.datasets.cache import build_once, cache_folder, run_parallel
from tests.small_disk import disk_of


def build_slowly(folder: Path, made: Path) -> None:
    def build(unfinished: Path) -> None:
        time.sleep(0.3)
        (made / str(os.getpid())).touch()
        (unfinished / "file").write_text("complete")

    build_once(folder, build)
    assert (folder / "file").read_text() == "complete"


def test_processes_that_start_at_once(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "cache" / "a"
    processes = [context.Process(target=build_slowly, args=(folder, made)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(made.iterdir())) == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "a.lock"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(unfinished: Path) -> None:
        (unfinished / "half").touch()
        raise ValueError("mask of the wrong size")

    with pytest.raises(ValueError, match="wrong size"):
        build_once(tmp_path / "a", build)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    build_once(tmp_path / "a", lambda unfinished: (unfinished / "whole").touch())
    assert (tmp_path / "a" / "whole").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    def build(unfinished: Path) -> None:
        with (unfinished / "a").open("wb") as file:
            file.write(bytes(1001))

    message = r"%s: cannot be written \((%s)\); make room there, or let \$MASK2FORMER_CACHE name another folder"
    with disk_of(1000), pytest.raises(OSError, match=message % (tmp_path / "a", "File too large")):
        build_once(tmp_path / "a", build)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "datasets" / "a"
    with pytest.raises(OSError, match=message % (below, "Not a directory")):
        build_once(below, build)


def test_errors_of_the_build_itself_stay(tmp_path: Path) -> None:
    def build(_: Path) -> None:
        (tmp_path / "pictures" / "absent").open()

    with pytest.raises(FileNotFoundError, match=r"absent'$"):
        build_once(tmp_path / "cache" / "a", build)


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_CACHE", "~nobody-at-all/cache")
    with pytest.raises(OSError, match=r"no home folder .*; let \$MASK2FORMER_CACHE name a folder"):
        cache_folder("a", (), [])


def test_folders_follow_files_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a.png"
    file.write_text("one")
    first = cache_folder("name", {"things": 1}, [file])
    assert first.parent == tmp_path / "cache" / "datasets"
    assert first.name.startswith("name-")
    assert first == cache_folder("name", {"things": 1}, [file])
    others = [cache_folder("name", {"things": 2}, [file]), cache_folder("name", {"things": 1}, [])]
    os.utime(file, (1, 1))
    others.append(cache_folder("name", {"things": 1}, [file]))
    assert len({first, *others}) == 4


def test_run_parallel_keeps_the_order_and_stops_at_errors() -> None:
    assert run_parallel(lambda n: n * n, list(range(50)), "squares") == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        run_parallel(lambda n: 1 // n, [2, 1, 0], "inverses")
