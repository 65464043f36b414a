"""AdamW or SGD with a learning rate for the backbone of its own and no weight decay where it does harm."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from detectron2.projects import deeplab
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver import LRMultiplier
from torch import nn

__all__ = ["build_lr_scheduler", "build_optimizer", "parameter_groups"]

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch norms, SyncBN and instance norms
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    LayerNorm,  # of maps
)
# Positions of Swin and of ViTs, and tokens of the latter, which are no nn.Embedding but spared weight decay like one.
_UNDECAYED_NAMES = ("relative_position_bias_table", "pos_embed", "cls_token", "reg_token")
# The pyramid of a plain ViT, which is not pretrained, lies inside the backbone.
_PYRAMID = "backbone.pyramid"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer ``SOLVER.OPTIMIZER`` names, clipping gradients as ``SOLVER.CLIP_GRADIENTS`` says.

    ``CLIP_TYPE: full_model`` limits the norm of all gradients together to ``CLIP_VALUE``; Detectron2's other types clip
    each parameter. Parameters may be without gradients, as those of parts that nothing reads.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
    )
    if solver.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; expected one of {sorted(_OPTIMIZERS)}.")
    optimizer = _OPTIMIZERS[solver.OPTIMIZER](groups, solver)
    clip = solver.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if clip.CLIP_TYPE not in _CLIP_TYPES or not clip.CLIP_VALUE > 0:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS has CLIP_TYPE {clip.CLIP_TYPE!r} and CLIP_VALUE {clip.CLIP_VALUE}; expected one of "
            f"{list(_CLIP_TYPES)} and a value above 0, or ENABLED False to clip nothing."
        )
    return _clip_gradients(optimizer, partial(_CLIP_TYPES[clip.CLIP_TYPE], clip=clip))


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule ``SOLVER.LR_SCHEDULER_NAME`` names, one of Detectron2's or DeepLab's "WarmupPolyLR".

    A run that is resumed has the schedule of its configuration then, ``SOLVER.MAX_ITER`` included.

    Raises:
        ValueError: there is no such schedule, or none of these steps.
    """
    scheduler: torch.optim.lr_scheduler.LRScheduler
    try:
        scheduler = deeplab.build_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        solver = cfg.SOLVER
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME} with MAX_ITER {solver.MAX_ITER} and STEPS "
            f"{solver.STEPS}, which rise and end before MAX_ITER: {error}."
        ) from error
    scheduler.__class__ = _ResumableWarmupPolyLR if isinstance(scheduler, WarmupPolyLR) else _EndingLRMultiplier
    return scheduler


class _EndingLRMultiplier(LRMultiplier):
    """Detectron2's schedules, some of which have no rate for after the last step, and fail there."""

    def get_lr(self) -> list[float]:
        if self.last_epoch >= self._max_iter:
            return [group["lr"] for group in self.optimizer.param_groups]  # nobody steps with it
        rates: list[float] = super().get_lr()
        return rates


class _ResumableWarmupPolyLR(WarmupPolyLR):
    """Takes from a checkpoint where it is, as Detectron2's do; DeepLab's would take its settings as well."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: state_dict[name] for name in ("base_lrs", "last_epoch")})


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    backbone_multiplier: float,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of equal learning rate and weight decay, each parameter once.

    Modules whose name contains "backbone" learn at ``base_lr * backbone_multiplier``, but for the pyramid of a plain
    ViT. Normalization layers decay by ``weight_decay_norm``, ``nn.Embedding`` by ``weight_decay_embed``, positions and
    tokens of Swin and of ViTs not at all.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        is_pretrained = "backbone" in module_name and _PYRAMID not in module_name
        lr = base_lr * backbone_multiplier if is_pretrained else base_lr
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay
            if isinstance(module, _NORMS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            elif any(undecayed in name for undecayed in _UNDECAYED_NAMES):
                decay = 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def _clip_gradients(
    optimizer: torch.optim.Optimizer, clip: Callable[[Sequence[nn.Parameter]], object]
) -> torch.optim.Optimizer:
    """Clip inside ``step``, where the gradients are unscaled under mixed precision and whole under accumulation."""
    base = type(optimizer)

    class Clipping(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            clip([p for group in self.param_groups for p in group["params"] if p.grad is not None])
            return super().step(closure)

    Clipping.__name__ = f"Clipping{base.__name__}"
    optimizer.__class__ = Clipping
    return optimizer


def _clip_full_model(parameters: Sequence[nn.Parameter], clip: CfgNode) -> None:
    nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)


def _clip_each_norm(parameters: Sequence[nn.Parameter], clip: CfgNode) -> None:
    for parameter in parameters:
        nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)


def _clip_values(parameters: Sequence[nn.Parameter], clip: CfgNode) -> None:
    for parameter in parameters:
        nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)


def _adamw(groups: list[dict[str, Any]], solver: CfgNode) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=True)  # several times as fast, on CPUs too
    optimizer.register_load_state_dict_pre_hook(_stay_fused)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_parameters)
    return optimizer


def _stay_fused(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's groups say how its own optimizer computed; a scaler of gradients asks what this one can."""
    groups = [{**group, "fused": True, "foreach": None} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """A fused optimizer reads numbers in the order in which they are in memory: a checkpoint may have another one."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _sgd(groups: list[dict[str, Any]], solver: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


_CLIP_TYPES = {"full_model": _clip_full_model, "norm": _clip_each_norm, "value": _clip_values}
_OPTIMIZERS = {"ADAMW": _adamw, "SGD": _sgd}
