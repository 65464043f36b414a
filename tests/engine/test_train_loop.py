import logging
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from mask2former.engine.train_loop import StepTrainer


class Regression(nn.Module):
    """Mean squared error of a line; a sample is {"x": ..., "y": ..., "file_name": ...}."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.seen_dtypes: list[torch.dtype] = []

    def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        x, y = (torch.tensor([[s[key]] for s in samples]) for key in "xy")
        predicted = self.line(x)
        self.seen_dtypes.append(predicted.dtype)
        loss = ((predicted.float() - y) ** 2).mean()
        return {"loss_a": loss, "loss_b": 2 * loss}


SAMPLES = [{"x": float(i), "y": 3.0 * i + 1, "file_name": f"{i}.png"} for i in range(4)]


def run(batches: list[list[dict]], lr: float = 0.01, **options) -> tuple[StepTrainer, EventStorage]:
    torch.manual_seed(0)
    model = Regression()
    trainer = StepTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=lr), **options)
    with EventStorage() as storage:
        trainer.run_step()
    return trainer, storage


def test_accumulated_gradients_equal_the_joint_batch():
    joint, joint_storage = run([SAMPLES])
    split, split_storage = run([SAMPLES[:2], SAMPLES[2:]], accumulation_steps=2)

    for a, b in zip(joint.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(a, b)
    for name in ("total_loss", "loss_a", "loss_b"):
        assert split_storage.latest()[name][0] == pytest.approx(joint_storage.latest()[name][0], rel=1e-6)


def test_losses_are_logged_with_their_sum():
    _, storage = run([SAMPLES])
    logged = {name: value for name, (value, _) in storage.latest().items()}

    assert logged["total_loss"] == pytest.approx(logged["loss_a"] + logged["loss_b"])
    assert logged["loss_b"] == pytest.approx(2 * logged["loss_a"])
    assert logged["data_time"] >= 0


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    trainer, _ = run([SAMPLES], autocast_dtype=torch.bfloat16)

    assert trainer.model.seen_dtypes == [torch.bfloat16]
    assert trainer.model.line.weight.dtype == trainer.model.line.weight.grad.dtype == torch.float32
    assert not trainer.grad_scaler.is_enabled()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_loss_stops_before_the_step_and_names_the_images(value):
    torch.manual_seed(0)
    model = Regression()
    before = [parameter.clone() for parameter in model.parameters()]
    broken = [SAMPLES[0], {"x": 1.0, "y": value, "file_name": "broken.png"}]
    trainer = StepTrainer(model, [broken], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.iter = 12

    with (
        EventStorage(),
        pytest.raises(FloatingPointError, match=r"iteration 12 .*'loss_a': (nan|inf).*0.png.*broken.png.*BASE_LR"),
    ):
        trainer.run_step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


class Overflow(nn.Module):
    """A finite loss whose gradient is not: the slope of a square root at 0, where a sample's x is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        return {"loss": sum((self.weight * s["x"]).abs().sqrt() for s in samples)}


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_step_with_a_broken_gradient_is_skipped_and_training_goes_on(accumulation_steps, caplog):
    batches = [[SAMPLES[1]], [SAMPLES[0]], [SAMPLES[2]], [SAMPLES[3]]][2 - accumulation_steps :]
    model = Overflow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, batches, optimizer, accumulation_steps=accumulation_steps, max_skipped_steps=1)
    trainer.iter = 5
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        trainer.run_step()
        assert model.weight.item() == 1.0
        assert storage.latest()["total_loss"][0] < 1
        trainer.run_step()

    (message,) = [record.getMessage() for record in caplog.records]
    assert "gradient is infinite or NaN at iteration 5" in message
    assert "process 0: ['0.png'" in message or "'0.png']" in message
    assert "step is skipped (1 in a row, 1 so far)" in message
    assert storage.latest()["skipped_steps"][0] == 1
    assert 0 < model.weight.item() < 1


BROKEN = {"x": 1.0, "y": float("nan"), "file_name": "broken.png"}


class NormedRegression(Regression):
    """Has a batch norm, which sees the broken sample too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        self.norm(torch.tensor([[s["x"] * s["y"]] for s in samples]))
        return super().forward(samples)


def test_skipped_steps_change_nothing_but_the_count(caplog):
    """Seven batches, three of which are broken, train as the four others alone would."""
    good = [SAMPLES[:2], SAMPLES[1:3], SAMPLES[2:], SAMPLES[:3]]
    broken = [BROKEN, SAMPLES[3]]
    models = []
    for batches in (good, [good[0], broken, broken, good[1], good[2], broken, good[3]]):
        torch.manual_seed(0)
        model = NormedRegression()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        trainer = StepTrainer(model, batches, optimizer, max_skipped_steps=2)
        counts, losses = [], []
        with EventStorage() as storage:
            for trainer.iter in range(len(batches)):
                storage.iter = trainer.iter
                trainer.run_step()
                counts.append(storage.latest()["skipped_steps"][0])
                losses.append(storage.latest()["total_loss"])
        models.append(model)
    assert counts == [0, 1, 2, 2, 2, 3, 3]
    assert [iteration for _, iteration in losses] == [0, 0, 0, 3, 4, 4, 6]  # no loss is logged where one is NaN
    assert all(math.isfinite(loss) for loss, _ in losses)
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value), name
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 3
    for iteration, message in zip((1, 2, 5), messages, strict=True):
        assert f"iteration {iteration} " in message
        assert "broken.png" in message


def test_an_overflow_of_the_scaled_loss_changes_no_norm():
    class Normed(Overflow):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
            self.norm(torch.tensor([[s["x"]] for s in samples]))
            return super().forward(samples)

    model = Normed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = StepTrainer(model, [SAMPLES], optimizer, autocast_dtype=torch.float16)
    trainer.iter = 0
    with EventStorage():
        trainer.run_step()
    assert trainer.skipped_steps.state_dict() == {"total": 1, "in_a_row": 0}
    assert trainer.grad_scaler.get_scale() == 2**15
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_too_many_skipped_steps_in_a_row_end_the_run():
    model = Regression()
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = StepTrainer(model, [[BROKEN]] * 3, torch.optim.SGD(model.parameters(), lr=1.0), max_skipped_steps=2)
    with EventStorage():
        trainer.run_step()
        trainer.run_step()
        with pytest.raises(
            FloatingPointError, match=r"broken.png.*Expected finite.*3 steps in a row.*MAX_SKIPPED_STEPS is 2.*BASE_LR"
        ):
            trainer.run_step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_an_infinite_loss_without_a_broken_gradient_is_skipped_too():
    class Constant(Regression):
        def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
            return {**super().forward(samples), "loss_c": torch.tensor(math.inf)}

    for dtype in (None, torch.float16):
        model = Constant()
        before = [parameter.clone() for parameter in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        trainer = StepTrainer(model, [SAMPLES], optimizer, autocast_dtype=dtype, max_skipped_steps=1)
        with EventStorage():
            trainer.run_step()
        assert trainer.skipped_steps.total == trainer.skipped_steps.in_a_row == 1
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_state_survives_a_round_trip():
    trainer, _ = run([SAMPLES])
    other, _ = run([SAMPLES], lr=0.5)
    other.load_state_dict(trainer.state_dict())

    assert other.optimizer.param_groups[0]["lr"] == 0.01


def test_counts_go_on_after_a_resume():
    trainer, _ = run([[BROKEN]], max_skipped_steps=1)
    other, _ = run([SAMPLES, [BROKEN]], max_skipped_steps=1)
    other.load_state_dict(trainer.state_dict())

    assert other.skipped_steps.total == 1
    with EventStorage(), pytest.raises(FloatingPointError, match="2 steps in a row"):
        other.run_step()
    old = {name: value for name, value in trainer.state_dict().items() if name != "skipped_steps"}
    other.load_state_dict(old)  # of Detectron2's trainer


def test_float16_that_overflows_at_any_scale_ends_the_run():
    model = Overflow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, [[SAMPLES[0]]] * 30, optimizer, autocast_dtype=torch.float16, max_skipped_steps=2)
    with EventStorage():
        for _ in range(18):
            trainer.run_step()
        with pytest.raises(FloatingPointError, match="3 steps in a row"):
            trainer.run_step()
    assert trainer.skipped_steps.total == 16 + 3  # from a scale of 2**16 down to 2, and three


def test_float16_scales_the_loss_but_not_the_step():
    torch.manual_seed(0)
    line = Regression().line  # as ``run`` starts; close to it, the scaled gradients do not overflow
    near = [{"x": 0.1 * i, "y": line(torch.tensor([0.1 * i])).item() + 0.05, "file_name": ""} for i in range(4)]
    full, _ = run([near])
    half, _ = run([near], autocast_dtype=torch.float16)

    assert half.model.seen_dtypes == [torch.float16]
    assert half.state_dict()["grad_scaler"]["scale"] == 2**16
    for a, b in zip(full.model.parameters(), half.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-3, atol=1e-3)  # unscaled in place, before the step
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_float16_skips_a_step_whose_scaled_gradients_overflow():
    trainer, _ = run([[{"x": 100.0, "y": 1e4, "file_name": "far.png"}]], autocast_dtype=torch.float16)
    fresh, _ = run([SAMPLES], lr=0.0)

    assert trainer.grad_scaler.get_scale() == 2**15
    assert trainer.state_dict()["skipped_steps"] == {"total": 1, "in_a_row": 0}  # such steps are how it finds its scale
    assert torch.equal(trainer.model.line.weight, fresh.model.line.weight)
