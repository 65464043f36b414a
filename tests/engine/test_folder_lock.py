"""Two trainings that are started into one folder."""

import errno
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Timer

import pytest

from mask2former import cli
from mask2former.engine import folder_lock, run
from mask2former.engine.folder_lock import only_training_in
from tests.engine.test_train_net import parse

fcntl = pytest.importorskip("fcntl")


@contextmanager
def training_elsewhere(folder: Path) -> Iterator[BaseProcess]:
    """Another process that trains there, until it is killed."""
    fork = multiprocessing.get_context("fork")  # POSIX's locks are not the child's
    ready = fork.Event()

    def train() -> None:
        with only_training_in(folder):
            ready.set()
            time.sleep(60)

    process = fork.Process(target=train, daemon=True)
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text(f"OUTPUT_DIR: {tmp_path / 'out'}\nDATASETS: {{TRAIN: [coco_2017_train]}}\n")
    return file


def test_the_second_ends_with_an_error_before_it_writes(
    configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with training_elsewhere(tmp_path / "out") as other:
        assert cli.main(["train", "--config-file", str(configuration)]) == 1
        message = (
            rf"error: .*out: another program trains there \(process {other.pid} of .+\); wait for its end, or choose"
        )
        assert re.search(message, capsys.readouterr().err)
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["training.lock"]


def test_a_killed_training_leaves_no_lock(tmp_path: Path) -> None:
    with training_elsewhere(tmp_path) as other:
        with pytest.raises(BlockingIOError, match="another program"), only_training_in(tmp_path):
            pass
        other.kill()
        other.join()
        with only_training_in(tmp_path):
            assert (tmp_path / "training.lock").read_text().startswith(f"process {os.getpid()} of ")


def test_the_lock_of_a_machine_that_may_be_gone_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_PAUSE", 0.01)
    with training_elsewhere(tmp_path) as other:
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        monkeypatch.setattr(folder_lock, "_LEASE", 0.02)
        with pytest.raises(BlockingIOError, match="another program"), only_training_in(tmp_path):
            pass
        monkeypatch.setattr(folder_lock, "_LEASE", 60)
        Timer(0.2, other.kill).start()
        with only_training_in(tmp_path):
            assert (tmp_path / "training.lock").read_text() == f"process {os.getpid()} of another"


@pytest.mark.parametrize(
    ("words", "variables"), [(["--eval-only"], {}), (["--machine-rank", "1"], {}), ([], {"RANK": "1"})]
)
def test_others_are_free_to_go_there(
    words: list[str], variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(run, "launch", lambda *given, args: started.append(args))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with training_elsewhere(tmp_path):
        run.run(parse([*words, "OUTPUT_DIR", str(tmp_path)]))
    assert len(started) == 1


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    with only_training_in(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "fcntl", None)
    with only_training_in(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
