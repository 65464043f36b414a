"""Weights & Biases: what is logged, by a stand-in of its package; and that the package itself takes it, offline."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from detectron2.engine import hooks

from mask2former.engine import Trainer
from mask2former.engine.hooks import TrainingStopped


class FakeRun:
    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished, self.id = options, [], False, ""

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        assert not self.finished
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.finished, self.exit_code = True, exit_code


class FakeWandb(ModuleType):
    class Error(Exception):
        pass

    Image = np.asarray

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.refuse = False

    def init(self, **options: Any) -> FakeRun:
        if self.refuse:
            raise self.Error("api_key not configured")
        self.runs.append(FakeRun(**options))
        self.runs[-1].id = options["id"] or f"id{len(self.runs)}"
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


Config = Callable[..., Any]
KEYS = {"LOGGING__WANDB__PROJECT": "toys", "TEST__EVAL_PERIOD": 0}


def train(cfg: Any, *, resume: bool = False) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()


def test_scalars_and_pictures(toy_config: Config, tmp_path: Path, wandb: FakeWandb) -> None:
    train(toy_config(**KEYS, SOLVER__MAX_ITER=50, VIS_PERIOD=20, TEST__VIS_IMAGES=1))
    (run,) = wandb.runs
    assert run.finished
    assert run.exit_code == 0
    assert (run.options["project"], run.options["name"], run.options["dir"]) == ("toys", "out", str(tmp_path / "out"))
    assert run.options["config"]["SOLVER"]["MAX_ITER"] == 50
    assert [values["iteration"] for values in run.logged][:3] == [19, 39, 49]
    assert all({"total_loss", "lr"} <= values.keys() for values in run.logged[:3])
    shown = [[name for name in values if name.startswith("predictions/")] for values in run.logged]
    assert shown[:3] == [["predictions/001"], ["predictions/001"], []]
    assert run.logged[0]["predictions/001"].shape == (24, 64, 3)
    assert any("panoptic_seg/PQ" in values for values in run.logged)  # the evaluation at the end


def test_resume_goes_on_with_the_run(toy_config: Config, tmp_path: Path, wandb: FakeWandb) -> None:
    keys = KEYS | {"SOLVER__CHECKPOINT_PERIOD": 4}
    train(toy_config(**keys, SOLVER__MAX_ITER=8))
    (tmp_path / "out/last_checkpoint").write_text("model_0000003.pth")  # as if it had been killed after five steps
    train(toy_config(**keys, SOLVER__MAX_ITER=8), resume=True)
    assert [run.options["id"] for run in wandb.runs] == [None, "id1"]
    assert all(run.options["resume"] == "allow" for run in wandb.runs)
    assert wandb.runs[1].logged[0]["iteration"] == 7
    train(toy_config(**keys, SOLVER__MAX_ITER=4))  # not resumed: another run
    assert wandb.runs[2].options["id"] is None


@pytest.mark.parametrize(("end", "exit_code"), [(FloatingPointError, 1), (KeyboardInterrupt, 1), (TrainingStopped, 0)])
def test_a_training_that_fails_is_a_run_that_failed(
    end: type[BaseException], exit_code: int, toy_config: Config, wandb: FakeWandb
) -> None:
    def stop(trainer: Trainer) -> None:
        raise end

    trainer = Trainer(toy_config(**KEYS, SOLVER__MAX_ITER=4))
    trainer.register_hooks([hooks.CallbackHook(after_step=stop)])
    with nullcontext() if end is TrainingStopped else pytest.raises(end):
        trainer.train()
    assert wandb.runs[0].finished
    assert wandb.runs[0].exit_code == exit_code


def test_errors(toy_config: Config, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.refuse = True
    with pytest.raises(RuntimeError, match=r"api_key not configured\)\. Log in by `wandb login`, set WANDB_MODE=off"):
        train(toy_config(**KEYS, SOLVER__MAX_ITER=2))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mask2former\[wandb\]'"):
        Trainer(toy_config(**KEYS))
    Trainer(toy_config())


def test_offline(toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_CONSOLE", "off")):
        monkeypatch.setenv(name, value)
    keys = KEYS | {"SOLVER__CHECKPOINT_PERIOD": 4, "VIS_PERIOD": 4, "TEST__VIS_IMAGES": 1}
    train(toy_config(**keys, SOLVER__MAX_ITER=8))
    run_id = (tmp_path / "out/wandb_run.txt").read_text().strip()
    (tmp_path / "out/last_checkpoint").write_text("model_0000003.pth")
    train(toy_config(**keys, SOLVER__MAX_ITER=8), resume=True)
    runs = list((tmp_path / "out/wandb").glob(f"offline-run-*-{run_id}"))
    assert len(runs) in (1, 2)  # in one second, or in two
    assert all(list(run.glob("*.wandb")) for run in runs)
    assert list(runs[0].rglob("*.png"))
