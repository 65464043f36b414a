"""Checkpoints that survive: full disks, damaged files, and kill -9 at any time."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from torch import nn

from mask2former.engine import Trainer
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from tests.small_disk import disk_of


class Counter:
    """State of a run beside its model."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def save(folder: Path, *steps: int, size: int = 4) -> Mask2FormerCheckpointer:
    """Save a model whose weights are all the step's number, at each step."""
    folder.mkdir(exist_ok=True)
    model = nn.Linear(size, 1, bias=False)
    for step in steps:
        nn.init.constant_(model.weight, step)
        checkpointer = Mask2FormerCheckpointer(model, str(folder), trainer=Counter(step))
        checkpointer.save(f"model_{step:07d}", iteration=step)
    return checkpointer


def resume(folder: Path, size: int = 4, weights: str = "", anew: bool = False) -> tuple[int, float]:
    """What a resume finds: the trainer's state, and the weights."""
    model, counter = nn.Linear(size, 1, bias=False), Counter(-1)
    nn.init.constant_(model.weight, -1)
    Mask2FormerCheckpointer(model, str(folder), trainer=counter).resume_or_load(weights, resume=not anew)
    return counter.value, model.weight[0, 0].item()


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    checkpointer = save(tmp_path, 1, 2, size=100_000)
    before = (tmp_path / "model_0000002.pth").read_bytes()
    for name in ("model_0000003", "model_0000002"):  # a new name, and the old one written again
        message = (
            rf"{name}\.pth could not be written: File too large \([\d,]+ MiB are free there\)\. The checkpoint before, "
            r".*model_0000002\.pth, is whole\. Make room .* --resume"
        )
        with disk_of(100_000), pytest.raises(OSError, match=message):
            checkpointer.save(name, iteration=3)
    assert names(tmp_path) == {"model_0000001.pth", "model_0000002.pth", "last_checkpoint"}
    assert (tmp_path / "model_0000002.pth").read_bytes() == before
    assert resume(tmp_path, size=100_000) == (2, 2.0)


def test_a_disk_without_room_for_the_name_alone(tmp_path: Path) -> None:
    checkpointer = save(tmp_path, 1)
    with (
        disk_of(5),
        pytest.raises(OSError, match=r"last_checkpoint could not be written.*model_0000001\.pth, is whole"),
    ):
        checkpointer.tag_last_checkpoint("model_0000002.pth")
    assert resume(tmp_path) == (1, 1.0)


def test_a_training_ends_with_the_error_and_resumes_when_there_is_room(toy_config, tmp_path: Path, monkeypatch) -> None:
    cfg = toy_config(SOLVER__CHECKPOINT_PERIOD=3)
    real, written = torch.save, []

    def save_twice(*args) -> None:
        written.append(1)
        if len(written) == 2:
            args[1].write(b"half")
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(torch, "save", save_twice)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    with pytest.raises(OSError, match=r"model_0000005\.pth could not be written: No space left on device"):
        trainer.train()
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 3
    assert not list((tmp_path / "out").glob("*.part"))


def test_leftovers_of_a_killed_process_are_removed(toy_config, tmp_path: Path) -> None:
    save(tmp_path, 1)
    leftovers = [tmp_path / "model_0000007.pth.part", tmp_path / "last_checkpoint.part"]
    for leftover in leftovers:
        leftover.touch()
    save(tmp_path, 2)
    assert not any(leftover.exists() for leftover in leftovers)

    cfg = toy_config(OUTPUT_DIR=tmp_path)
    leftovers[0].touch()
    Mask2FormerCheckpointer(nn.Linear(4, 1, bias=False), str(tmp_path)).resume_or_load("")  # an evaluation, say
    Mask2FormerCheckpointer(nn.Linear(4, 1), str(tmp_path), save_to_disk=False).remove_leftovers()
    assert leftovers[0].exists()
    (tmp_path / "last_checkpoint").unlink()
    Trainer(cfg).resume_or_load(resume=False)
    assert not leftovers[0].exists()


def test_nothing_is_saved_without_a_folder_or_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Mask2FormerCheckpointer(nn.Linear(4, 1)).save("model")
    Mask2FormerCheckpointer(nn.Linear(4, 1), str(tmp_path), save_to_disk=False).save("model")
    assert names(tmp_path) == set()


def damage(file: Path) -> None:
    """Change one bit of the weights, which PyTorch would not notice."""
    contents = bytearray(file.read_bytes())
    contents[contents.index(torch.full((4,), 3.0).numpy().tobytes())] ^= 1
    file.write_bytes(contents)


def damage_header(file: Path) -> None:
    """Change one bit of the way in which a member is packed."""
    contents = bytearray(file.read_bytes())
    contents[contents.index(b"PK\x01\x02") + 10] ^= 8
    file.write_bytes(contents)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "model_0000003.pth does not exist"),
        (lambda file: file.write_bytes(b""), "model_0000003.pth is cut short or unreadable"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "model_0000003.pth is cut short or unreadable"),
        (damage, "model_0000003.pth is damaged (archive/data/0 in it)"),
        (damage_header, "model_0000003.pth is cut short or unreadable"),
        (lambda file: (file.parent / "last_checkpoint").unlink(), "last_checkpoint is missing or empty"),
        (lambda file: (file.parent / "last_checkpoint").write_text(""), "last_checkpoint is missing or empty"),
    ],
)
def test_a_resume_takes_the_latest_whole_checkpoint(
    harm: Callable[[Path], object], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2, 3)
    harm(tmp_path / "model_0000003.pth")
    intact = 3 if "last_checkpoint" in reason else 2
    assert resume(tmp_path) == (intact, float(intact))
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"Resuming from {tmp_path}/model_000000{intact}.pth, since " in message
    assert reason in message


def test_no_whole_checkpoint_is_an_error_and_not_a_new_beginning(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "model_0000001.pth").write_bytes(b"PK")
    (tmp_path / "model_0000002.pth").unlink()
    with pytest.raises(
        ValueError,
        match=r"no whole checkpoint to resume from: model_0000002.pth does not exist; model_0000001.pth is cut short "
        r".*Write the name of one that is whole .* into last_checkpoint; or train without --resume",
    ):
        resume(tmp_path, weights=str(save(tmp_path / "other", 5).get_checkpoint_file()))


def test_a_folder_without_checkpoints_begins_with_the_weights(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    save(tmp_path / "first", 5)
    assert resume(tmp_path / "second", weights=str(tmp_path / "first/model_0000005.pth")) == (-1, 5.0)


def test_a_new_beginning_takes_the_weights_in_spite_of_checkpoints(tmp_path: Path) -> None:
    weights = save(tmp_path / "weights", 5).get_checkpoint_file()
    save(tmp_path / "run", 1)
    assert resume(tmp_path / "run", weights=weights, anew=True) == (-1, 5.0)


@pytest.fixture(scope="module")
def killed(toy_data: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What ``kills.py`` reports."""
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(toy_data), str(folder)]
    environment = {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "report.json").read_text())


def test_a_run_that_is_killed_anywhere_resumes_with_the_same_losses(killed: dict) -> None:
    straight = killed["straight"]
    assert len(set(straight.values())) == 6
    assert killed["kills_while_saving"] >= 18  # six calls to the disk for each of three checkpoints
    assert killed["kills_at_any_time"] >= 2
    for run, losses in killed["losses"].items():
        assert {step for step, _ in losses} == set(straight), run
        assert [(run, step, loss) for step, loss in losses if loss != straight[step]] == []
    assert killed["equal_weights"]


def test_a_killed_run_loses_no_more_than_the_steps_since_its_checkpoint(killed: dict) -> None:
    lost = killed["steps_lost"]
    assert max(map(max, lost.values())) == 3
    assert lost["call1"] == lost["call2"] == [0, 3]  # before the first checkpoint has its name
    assert all(lost[f"call{call}"] == [0, 0] for call in (3, 4, 5, 6))
    assert killed["leftovers"] == []


def test_a_picture_that_is_lost_ends_the_training_with_one_line(
    toy_config, toy, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    toy.write_dataset(data)
    toy.register_dataset(data, "lost")
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    cfg = toy_config(DATASETS__TRAIN="('lost',)", DATASETS__TEST="()", SOLVER__CHECKPOINT_PERIOD=2)
    trainer = Trainer(cfg)

    def lose(trainer: Trainer) -> None:
        if trainer.iter == 4:
            for picture in data.glob("0*.png"):
                picture.rename(picture.with_suffix(".lost"))

    trainer.register_hooks([hooks.CallbackHook(after_step=lose)])
    with pytest.raises(FileNotFoundError, match=r"\.png: no such file"):
        trainer.train()
    (line,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert re.fullmatch(r".*\.png: no such file\..* --resume goes on from the last checkpoint\.", line.getMessage())
    assert line.exc_info is None
    for picture in data.glob("*.lost"):
        picture.rename(picture.with_suffix(".png"))
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    assert trainer.start_iter == 4
    trainer.train()
