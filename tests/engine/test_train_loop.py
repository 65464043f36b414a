import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from mask2former.engine.train_loop import StepTrainer, amp_dtype


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
def test_a_step_with_a_broken_gradient_is_left_out_and_training_goes_on(accumulation_steps, caplog):
    batches = [[SAMPLES[1]], [SAMPLES[0]], [SAMPLES[2]], [SAMPLES[3]]][2 - accumulation_steps :]
    model = Overflow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, batches, optimizer, accumulation_steps=accumulation_steps)
    trainer.iter = 5
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        trainer.run_step()
        assert model.weight.item() == 1.0
        assert storage.latest()["total_loss"][0] < 1
        trainer.run_step()

    (message,) = [record.getMessage() for record in caplog.records]
    assert "gradient is infinite or NaN at iteration 5" in message
    assert "0.png" in message
    assert 0 < model.weight.item() < 1


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "auto", torch.bfloat16),
        ("cpu", "bfloat16", torch.bfloat16),
        ("cuda:0", "auto", torch.float16),
        ("cuda", "float16", torch.float16),
        ("cuda", "bfloat16", torch.bfloat16),
    ],
)
def test_amp_dtype(toy_config, monkeypatch, device, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = toy_config(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype, MODEL__DEVICE=device)

    assert amp_dtype(cfg) == expected


def test_amp_is_off_by_default(toy_config):
    assert amp_dtype(toy_config()) is None


@pytest.mark.parametrize(
    ("dtype", "message"), [("float16", "on a GPU only.*'bfloat16'"), ("int8", "'int8'; expected 'auto'")]
)
def test_impossible_amp_types_are_errors(toy_config, dtype, message):
    with pytest.raises(ValueError, match=message):
        amp_dtype(toy_config(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype))


def test_state_survives_a_round_trip():
    trainer, _ = run([SAMPLES])
    other, _ = run([SAMPLES], lr=0.5)
    other.load_state_dict(trainer.state_dict())

    assert other.optimizer.param_groups[0]["lr"] == 0.01


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
    assert torch.equal(trainer.model.line.weight, fresh.model.line.weight)
