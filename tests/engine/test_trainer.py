import io
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mask2former.engine import Trainer

ALL_LOSSES = ("loss_ce", "loss_mask", "total_loss")


def train(cfg, resume: bool = False, *, stop_after: int | None = None) -> list[tuple[float, ...]]:
    """Train; returns the losses of each step. ``stop_after`` steps the run breaks off, as if it were killed."""
    losses = []

    def record(trainer) -> None:
        latest = trainer.storage.latest()
        losses.append(tuple(latest[name][0] for name in ALL_LOSSES))
        if trainer.iter + 1 == stop_after:
            raise KeyboardInterrupt

    trainer = Trainer(cfg)
    trainer.register_hooks([hooks.CallbackHook(after_step=record)])
    trainer.resume_or_load(resume=resume)
    if stop_after is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return losses


@pytest.fixture
def straight(toy_config, tmp_path):
    """Losses of eight steps without a stop."""
    return train(toy_config(OUTPUT_DIR=tmp_path / "straight"))


def test_convolutions_are_prepared(toy_config, monkeypatch):
    prepared = []
    prepare = lambda model: prepared.append(model) or model  # noqa: E731
    monkeypatch.setattr("mask2former.engine.trainer.prepare_for_training", prepare)

    trainer = Trainer(toy_config())

    assert prepared == [trainer.model]


def test_training_lowers_the_loss(toy_config):
    losses = [total for *_, total in train(toy_config(SOLVER__MAX_ITER=60, SOLVER__BASE_LR=0.05))]

    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_seeded_run_repeats_bit_for_bit(toy_config, straight, tmp_path):
    assert train(toy_config(OUTPUT_DIR=tmp_path / "again")) == straight
    assert len(set(straight)) == 8


def test_another_seed_gives_another_run(toy_config, straight):
    assert train(toy_config(SEED=8)) != straight


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_continues_bit_for_bit(toy_config, straight, num_workers):
    cfg = toy_config(SOLVER__CHECKPOINT_PERIOD=4, TEST__EVAL_PERIOD=3, DATALOADER__NUM_WORKERS=num_workers)
    first = train(cfg, stop_after=5)  # one step more than the checkpoint has
    rest = train(cfg, resume=True)

    assert first == straight[:5]
    assert rest == straight[4:]


def test_an_accumulating_run_resumes_at_the_right_sample(toy_config, tmp_path):
    changes = {"SOLVER__GRADIENT_ACCUMULATION_STEPS": 2, "SOLVER__CHECKPOINT_PERIOD": 4}
    whole = train(toy_config(OUTPUT_DIR=tmp_path / "whole", **changes))
    cfg = toy_config(**changes)
    train(cfg, stop_after=4)

    assert train(cfg, resume=True) == whole[4:]


def test_a_run_without_a_seed_resumes_with_the_one_it_drew(toy_config, caplog):
    cfg = toy_config(SEED=-1, SOLVER__CHECKPOINT_PERIOD=4)
    whole = train(cfg)
    (trainer_of_first := Trainer(cfg)).checkpointer.tag_last_checkpoint("model_0000003.pth")
    with caplog.at_level(logging.INFO, "mask2former"):
        rest = train(cfg, resume=True)

    assert rest == whole[4:]
    assert "goes on with the seed it began with" in caplog.text
    assert trainer_of_first.cfg.SEED >= 0


def test_bfloat16_training_resumes_too(toy_config, tmp_path):
    changes = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16", "SOLVER__CHECKPOINT_PERIOD": 4}
    whole = train(toy_config(OUTPUT_DIR=tmp_path / "whole", **changes))
    cfg = toy_config(**changes)
    train(cfg, stop_after=4)

    assert train(cfg, resume=True) == whole[4:]


def test_checkpoints_are_plain_data(toy_config, tmp_path):
    cfg = toy_config(SOLVER__AMP__ENABLED=True, TEST__BEST_CHECKPOINT__ENABLED=True)
    train(cfg)
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)

    assert checkpoint["iteration"] == 7
    assert checkpoint["trainer"]["seed"] == 7
    assert set(checkpoint) == {"model", "trainer", "iteration"}


def test_weights_load_without_resuming(toy_config, tmp_path):
    train(toy_config())
    cfg = toy_config(MODEL__WEIGHTS=tmp_path / "out" / "model_final.pth", OUTPUT_DIR=tmp_path / "fine_tuned")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)  # finds nothing to resume in its folder
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]

    assert trainer.start_iter == 0
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved[name])


def test_resuming_from_weights_alone_is_told(toy_config, tmp_path, caplog):
    cfg = toy_config()
    train(cfg)
    Trainer(cfg).resume_or_load(resume=True)
    assert "weights alone" not in caplog.text
    model = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    torch.save({"model": model}, tmp_path / "out" / "model_final.pth")
    (trainer := Trainer(cfg)).resume_or_load(resume=True)

    assert trainer.start_iter == 0
    assert "weights alone, so the training begins with them at step 0" in caplog.text


class FakeEvaluation(HookBase):
    """Puts given values of a metric into the storage, as an evaluation after each step would."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("task/metric", self.values[self.trainer.iter], smoothing_hint=False)


@pytest.fixture
def judged(toy_config, monkeypatch):
    """A configuration that keeps the best checkpoint by the values of ``FakeEvaluation``, one a step."""

    def make(values: list[float]):
        build_hooks = Trainer.build_hooks
        monkeypatch.setattr(Trainer, "build_hooks", lambda self: [FakeEvaluation(values), *build_hooks(self)])
        monkeypatch.setattr(Trainer, "test", classmethod(lambda *args, **kwargs: {}))
        best = {"TEST__BEST_CHECKPOINT__ENABLED": True, "TEST__BEST_CHECKPOINT__METRIC": "task/metric"}
        return toy_config(SOLVER__CHECKPOINT_PERIOD=3, TEST__EVAL_PERIOD=1, **best)

    return make


def best_iteration(folder: Path) -> int:
    return torch.load(folder / "out" / "model_best.pth", weights_only=True)["iteration"]


def test_the_best_checkpoint_is_kept_over_a_resume(judged, tmp_path):
    cfg = judged([1.0, 3.0, 2.0, 2.0, 2.5, 4.0, 1.0, float("nan")])
    train(cfg, stop_after=4)
    assert best_iteration(tmp_path) == 1
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000002.pth"  # what a resume starts from

    train(cfg, resume=True, stop_after=5)
    assert best_iteration(tmp_path) == 1  # 2.5 of the second run is no better than 3.0 of the first

    train(cfg, resume=True)
    assert best_iteration(tmp_path) == 5


def test_the_evaluation_after_a_checkpoint_counts_when_it_is_resumed(judged, tmp_path):
    """It is of the same step, but comes later, so the checkpoint does not know what it gave."""
    cfg = judged([1.0, 1.0, 3.0, 2.5, 2.0, 4.0, 1.0, 1.0])
    train(cfg, stop_after=3)
    assert best_iteration(tmp_path) == 2
    train(cfg, resume=True, stop_after=5)
    assert best_iteration(tmp_path) == 2  # 2.5 is no better than 3.0
    train(cfg, resume=True, stop_after=6)
    assert best_iteration(tmp_path) == 5

    (tmp_path / "out" / "last_checkpoint").write_text("model_0000002.pth")  # as where the later one is damaged
    train(cfg, resume=True, stop_after=4)
    assert best_iteration(tmp_path) == 5
    train(cfg, stop_after=1)  # another run knows nothing of this one
    assert best_iteration(tmp_path) == 0


def test_a_best_metric_that_is_not_computed_gives_a_warning(toy_config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mask2former"):
        train(toy_config(TEST__BEST_CHECKPOINT__ENABLED=True, TEST__BEST_CHECKPOINT__METRIC="segm/PQ"))

    assert "'segm/PQ' was not computed; the evaluation gave ['bbox/AP'" in caplog.text
    assert not (tmp_path / "out" / "model_best.pth").exists()


def test_a_metric_that_is_not_computed_stops_a_run_with_a_warning(toy_config, caplog):
    changes = {"TEST__EVAL_PERIOD": 1, "TEST__EARLY_STOPPING__PATIENCE": 2}
    with caplog.at_level(logging.WARNING, "mask2former"):
        assert len(train(toy_config(TEST__BEST_CHECKPOINT__METRIC="segm/PQ", **changes))) == 1

    assert "'segm/PQ' was not computed, which TEST.EARLY_STOPPING counts as no improvement" in caplog.text


def test_a_run_that_nothing_could_stop_early_is_refused(toy_config):
    with pytest.raises(ValueError, match=r"PATIENCE is 3, but TEST\.EVAL_PERIOD is 0, .*; say after how many steps"):
        Trainer(toy_config(TEST__EARLY_STOPPING__PATIENCE=3, TEST__EVAL_PERIOD=0))


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [
        ("SOLVER.MAX_ITER", 0, 1),
        ("SOLVER.CHECKPOINT_PERIOD", 0, 1),
        ("SOLVER.CHECKPOINT_PERIOD", -1, 1),  # would write one after each step
        ("TEST.VIS_IMAGES", -1, 0),
    ],
)
def test_numbers_that_no_run_can_have(toy_config, key, value, least):
    with pytest.raises(ValueError, match=f"^{key} is {value}, expected at least {least}\\.$"):
        Trainer(toy_config(**{key.replace(".", "__"): value}))


def test_a_run_stops_when_the_metric_gets_no_better(toy_config, tmp_path, monkeypatch, caplog):
    values = [1.0, 3.0, 2.0, 4.0, float("nan"), 4.0, 9.0, 9.0]
    build_hooks = Trainer.build_hooks
    monkeypatch.setattr(Trainer, "build_hooks", lambda self: [FakeEvaluation(values), *build_hooks(self)])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *args, **kwargs: {}))
    changes = {"TEST__EVAL_PERIOD": 1, "TEST__BEST_CHECKPOINT__METRIC": "task/metric", "SOLVER__CHECKPOINT_PERIOD": 2}
    cfg = toy_config(TEST__EARLY_STOPPING__PATIENCE=2, **changes)
    with caplog.at_level(logging.INFO, "mask2former"):
        assert len(train(cfg)) == 5  # the hook that counts comes after, so the sixth step is not seen
    assert "task/metric has not improved for 2 evaluations" in caplog.text
    assert "Exception during training" not in caplog.text
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == 5
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    with caplog.at_level(logging.INFO, "mask2former"):
        assert train(cfg, resume=True) == []
    assert "was stopped early, so nothing is left to do" in caplog.text

    (tmp_path / "out" / "last_checkpoint").write_text("model_0000003.pth")
    assert len(train(cfg, resume=True)) == 1  # as without a stop: the evaluation after that checkpoint brought a gain
    smaller = {"TEST__BEST_CHECKPOINT__MODE": "min", "OUTPUT_DIR": tmp_path / "min"}
    assert len(train(toy_config(TEST__EARLY_STOPPING__PATIENCE=2, **changes, **smaller))) == 2


def test_predictions_are_drawn_beside_the_truth(toy_config, tmp_path):
    train(toy_config(VIS_PERIOD=4, TEST__VIS_IMAGES=3))
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()

    assert sorted(events.Tags()["images"]) == ["predictions/001", "predictions/004", "predictions/008"]
    image = events.Images("predictions/008")
    assert [event.step for event in image] == [3, 7]
    assert (image[0].width, image[0].height) == (2 * 32, 24)


def test_the_evaluation_is_returned_and_logged(toy_config, tmp_path):
    trainer = Trainer(toy_config(SOLVER__MAX_ITER=1))
    results = trainer.train()

    assert {"panoptic_seg", "bbox", "segm", "sem_seg"} <= results.keys()
    assert f'"panoptic_seg/PQ": {results["panoptic_seg"]["PQ"]}' in (tmp_path / "out" / "metrics.json").read_text()


def test_an_evaluation_that_fails_leaves_the_model_in_training(toy_config):
    class Failing(DatasetEvaluator):
        def process(self, inputs: list, outputs: list) -> None:
            raise OSError("no space left")

    trainer = Trainer(toy_config())
    trainer.model.train()
    with pytest.raises(OSError, match="no space left"):
        Trainer.test(trainer.cfg, trainer.model, [Failing()])

    assert trainer.model.training


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_progress_bar_is_for_terminals(toy_config, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    train(toy_config())

    assert ("8/8" in sys.stderr.getvalue() and "loss=" in sys.stderr.getvalue()) == (stream is Terminal)
