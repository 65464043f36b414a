import copy
import re

import pytest
import torch
from detectron2.layers.batch_norm import LayerNorm
from torch import nn

from mask2former.engine.optimizer import build_lr_scheduler, build_optimizer, parameter_groups


class Model(nn.Module):
    """Every kind of parameter that is treated in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv = nn.Conv2d(3, 4, 1)
        self.backbone.norm = nn.BatchNorm2d(4)
        self.backbone.attention = nn.Module()
        self.backbone.attention.relative_position_bias_table = nn.Parameter(torch.ones(3))
        self.backbone.absolute_pos_embed = nn.Parameter(torch.ones(3))
        self.backbone.cls_token = nn.Parameter(torch.ones(3))
        self.backbone.pyramid = nn.Conv2d(4, 4, 1, bias=False)
        self.backbone.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Module()
        self.head.linear = nn.Linear(4, 4)
        self.head.norm = nn.LayerNorm(4)
        self.head.group_norm = nn.GroupNorm(2, 4)
        self.head.map_norm = LayerNorm(4)
        self.head.query = nn.Embedding(5, 4)
        self.head.shared = self.head.linear


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_each_parameter_gets_its_learning_rate_and_decay_once():
    model = Model()
    groups = parameter_groups(
        model, base_lr=1.0, weight_decay=0.5, weight_decay_norm=0.2, weight_decay_embed=0.1, backbone_multiplier=0.25
    )
    found = settings(model, torch.optim.SGD(groups))  # which refuses a parameter that is in two groups

    assert found == {
        "backbone.conv.weight": (0.25, 0.5),
        "backbone.conv.bias": (0.25, 0.5),
        "backbone.norm.weight": (0.25, 0.2),
        "backbone.norm.bias": (0.25, 0.2),
        "backbone.attention.relative_position_bias_table": (0.25, 0.0),
        "backbone.absolute_pos_embed": (0.25, 0.0),
        "backbone.cls_token": (0.25, 0.0),
        "backbone.pyramid.weight": (1.0, 0.5),
        "head.linear.weight": (1.0, 0.5),
        "head.linear.bias": (1.0, 0.5),
        "head.norm.weight": (1.0, 0.2),
        "head.norm.bias": (1.0, 0.2),
        "head.group_norm.weight": (1.0, 0.2),
        "head.group_norm.bias": (1.0, 0.2),
        "head.map_norm.weight": (1.0, 0.2),
        "head.map_norm.bias": (1.0, 0.2),
        "head.query.weight": (1.0, 0.1),
    }
    assert len(groups) == 6


def test_the_optimizer_reads_the_configuration(toy_config):
    model = Model()
    cfg = toy_config(
        SOLVER__BASE_LR=0.5, SOLVER__BACKBONE_MULTIPLIER=0.5, SOLVER__WEIGHT_DECAY=0.05, SOLVER__WEIGHT_DECAY_EMBED=0.01
    )
    optimizer = build_optimizer(cfg, model)
    found = settings(model, optimizer)

    assert isinstance(optimizer, torch.optim.AdamW)
    assert found["backbone.conv.weight"] == (0.25, 0.05)
    assert found["head.norm.weight"] == (0.5, 0.0)
    assert found["head.query.weight"] == (0.5, 0.01)


def test_a_checkpoint_may_have_another_memory_format(toy_config):
    def train(conv: nn.Conv2d, steps: int) -> None:
        for _ in range(steps):
            conv.weight.grad = None
            (conv.weight * torch.linspace(-1, 2, conv.weight.numel()).view_as(conv.weight)).sum().backward()
            optimizers[conv].step()

    convs = [nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)]
    optimizers = {conv: build_optimizer(toy_config(), conv) for conv in convs}
    train(convs[0], 3)
    with torch.no_grad():
        convs[1].weight.copy_(convs[0].weight)
    optimizers[convs[1]].load_state_dict(copy.deepcopy(optimizers[convs[0]].state_dict()))
    for conv in convs:
        train(conv, 1)

    torch.testing.assert_close(convs[1].weight, convs[0].weight)


def test_sgd_has_momentum(toy_config):
    optimizer = build_optimizer(toy_config(SOLVER__OPTIMIZER="SGD", SOLVER__MOMENTUM=0.8), Model())

    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.8


def test_an_unknown_optimizer_is_an_error(toy_config):
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER is 'LION'; expected one of \['ADAMW', 'SGD'\]"):
        build_optimizer(toy_config(SOLVER__OPTIMIZER="LION"), Model())


def step(cfg, gradients: tuple[float | None, float | None]) -> tuple[float, ...]:
    """Change of two parameters of different groups by one step of SGD without momentum."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Embedding(1, 1))
    before = [parameter.item() for parameter in model.parameters()]
    optimizer = build_optimizer(cfg, model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)
    optimizer.step()
    return tuple(parameter.item() - old for parameter, old in zip(model.parameters(), before, strict=True))


SGD = {"SOLVER__OPTIMIZER": "SGD", "SOLVER__MOMENTUM": 0.0, "SOLVER__BASE_LR": 1.0, "SOLVER__WEIGHT_DECAY": 0.0}


@pytest.mark.parametrize(
    ("clip", "gradients", "expected"),
    [
        ({"CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0}, (3.0, 4.0), (-0.6, -0.8)),
        ({"CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0}, (0.3, 0.4), (-0.3, -0.4)),
        ({"CLIP_TYPE": "value", "CLIP_VALUE": 1.0}, (3.0, 0.4), (-1.0, -0.4)),
        ({"CLIP_TYPE": "norm", "CLIP_VALUE": 2.0}, (3.0, 4.0), (-2.0, -2.0)),
    ],
)
def test_gradients_are_clipped(toy_config, clip, gradients, expected):
    changes = {f"SOLVER__CLIP_GRADIENTS__{key}": value for key, value in clip.items()}
    cfg = toy_config(SOLVER__CLIP_GRADIENTS__ENABLED=True, **SGD, **changes)

    assert step(cfg, gradients) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["full_model", "value", "norm"])
def test_a_parameter_without_a_gradient_is_not_clipped(toy_config, kind):
    """As a model has it where it computes what it does not read, or a loss has the weight 0."""
    changes = {"SOLVER__CLIP_GRADIENTS__CLIP_TYPE": kind, "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 1.0}
    cfg = toy_config(SOLVER__CLIP_GRADIENTS__ENABLED=True, **SGD, **changes)

    assert step(cfg, (3.0, None)) == pytest.approx((-1.0, 0.0), abs=1e-5)
    assert step(cfg, (None, None)) == (0.0, 0.0)


@pytest.mark.parametrize(("kind", "value"), [("full", 0.01), ("full_model", 0.0), ("norm", -1.0)])
def test_clipping_that_cannot_be_is_an_error(toy_config, kind, value):
    """A value of 0 would let nothing be learnt, without a word."""
    clip = {"ENABLED": True, "CLIP_TYPE": kind, "CLIP_VALUE": value}
    cfg = toy_config(**{f"SOLVER__CLIP_GRADIENTS__{key}": given for key, given in clip.items()})
    with pytest.raises(ValueError, match=rf"CLIP_TYPE '{kind}' and CLIP_VALUE {value}; .*or ENABLED False"):
        build_optimizer(cfg, Model())


def test_gradients_are_not_clipped_unless_asked(toy_config):
    assert step(toy_config(**SGD), (3.0, 4.0)) == pytest.approx((-3.0, -4.0), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WarmupPolyLR", [(1 - i / 10) ** 0.9 for i in range(10)]),
        ("WarmupMultiStepLR", [1.0] * 5 + [0.1] * 3 + [0.01] * 2),
        ("WarmupCosineLR", [0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / 10)).item()) for i in range(10)]),
        ("WarmupStepWithFixedGammaLR", [1.0] * 5 + [0.1] * 5),
    ],
)
def test_schedules(toy_config, name, expected):
    changes = {"SOLVER__STEPS": "(5, 8)", "SOLVER__NUM_DECAYS": 1}
    cfg = toy_config(SOLVER__LR_SCHEDULER_NAME=name, SOLVER__MAX_ITER=10, SOLVER__BASE_LR=2.0, **changes)
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    assert rates == pytest.approx([2.0 * factor for factor in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "steps"), [("Warmup", (5,)), *(("WarmupMultiStepLR", s) for s in [(0,), (10,), (8, 5)])]
)
def test_a_schedule_that_cannot_be_is_an_error(toy_config, name, steps):
    cfg = toy_config(SOLVER__LR_SCHEDULER_NAME=name, SOLVER__MAX_ITER=10, SOLVER__STEPS=steps)
    with pytest.raises(
        ValueError, match=rf"LR_SCHEDULER_NAME {name} with MAX_ITER 10 and STEPS {re.escape(str(steps))}"
    ):
        build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_a_schedule_may_end_while_it_rises(toy_config, name):
    changes = {"SOLVER__WARMUP_ITERS": 4, "SOLVER__WARMUP_FACTOR": 0.0, "SOLVER__RESCALE_INTERVAL": True}
    cfg = toy_config(SOLVER__LR_SCHEDULER_NAME=name, SOLVER__MAX_ITER=4, SOLVER__BASE_LR=1.0, **changes)
    scheduler = build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))
    rates = []
    for _ in range(4):
        rates += scheduler.get_last_lr()
        scheduler.step()

    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"])
def test_a_run_may_be_resumed_for_more_steps(toy_config, name):
    """DeepLab's schedule took the number of steps from the checkpoint, and failed after as many."""

    def scheduler(max_iter):
        cfg = toy_config(SOLVER__LR_SCHEDULER_NAME=name, SOLVER__MAX_ITER=max_iter, SOLVER__BASE_LR=2.0)
        return build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))

    first, resumed, whole = scheduler(4), scheduler(8), scheduler(8)
    for _ in range(4):
        first.step()
        whole.step()
    resumed.load_state_dict(first.state_dict())
    for _ in range(4):
        resumed.step()
        whole.step()
        assert resumed.get_last_lr() == pytest.approx(whole.get_last_lr())


def test_warmup_rises_linearly(toy_config):
    cfg = toy_config(SOLVER__WARMUP_ITERS=4, SOLVER__WARMUP_FACTOR=0.5, SOLVER__MAX_ITER=1000, SOLVER__BASE_LR=1.0)
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    assert rates == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0], abs=4e-3)


@pytest.mark.parametrize("official", [False, True])
def test_checkpoints_of_optimizers_that_were_not_fused(toy_config, official):
    model = nn.Linear(4, 3)
    model(torch.randn(2, 4)).sum().backward()
    before = torch.optim.AdamW(model.parameters())
    before.step()
    state = copy.deepcopy(before.state_dict())
    for group in state["param_groups"] if official else []:  # of PyTorch 1.9
        for name in ("fused", "foreach", "capturable", "differentiable", "maximize", "decoupled_weight_decay"):
            del group[name]
    for values in state["state"].values() if official else []:
        values["step"] = int(values["step"])
    optimizer, scaler = build_optimizer(toy_config(), model), torch.amp.GradScaler("cpu")
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)
    optimizer.zero_grad()
    scaler.scale(model(torch.randn(2, 4)).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(values["step"] == 2 for values in optimizer.state.values())
