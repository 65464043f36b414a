"""Parameters, gradients and the optimizer's state shared out among processes (FSDP2), and whole again in files."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["gather", "is_sharded", "local_part", "scatter_like", "scatter_optimizer", "shard", "unsharded"]


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` has sharded it."""
    return isinstance(model, FSDPModule)


def shard(
    model: nn.Module,
    *,
    unit_parameters: int,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Leave each process its share of every parameter, in place; before the optimizer is built.

    Blocks and layers, which are what lists and sequences of modules have as elements, are gathered one by one when they
    compute. What is in none of them is gathered with the whole model.

    Args:
        model: on the device of this process.
        unit_parameters: smaller elements than this are gathered with what they are part of.
        param_dtype: that parameters have while they compute; None is their own.
        reduce_dtype: that gradients have while they travel; None is the parameters'.

    Returns:
        The model.
    """
    # Its pieces are stored in rows, so channels cannot come last.
    model.to(memory_format=torch.contiguous_format)
    device_type = next(model.parameters()).device.type
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype, reduce_dtype, cast_forward_inputs=False)
    for unit in find_units(model, unit_parameters):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def find_units(model: nn.Module, unit_parameters: int) -> list[nn.Module]:
    """Elements of lists and sequences with enough parameters that are in no smaller unit; the inner ones first."""
    units: list[nn.Module] = []
    taken: set[nn.Parameter] = set()
    sequences = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    elements = [element for sequence in sequences for element in sequence if not isinstance(element, nn.ModuleList)]
    for element in sorted(dict.fromkeys(elements), key=lambda element: sum(1 for _ in element.modules())):
        left = [parameter for parameter in element.parameters() if parameter not in taken]
        if sum(parameter.numel() for parameter in left) >= unit_parameters:
            units.append(element)
            taken.update(left)
    return units


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is shared out; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(state: Any, keep: bool) -> Any:
    """Make tensors whole that are shared out, on the CPU; called by all processes with the same ``state`` at once.

    Args:
        state: dicts, lists and tuples of anything.
        keep: whether this process wants the result; others save their memory.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gather(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gather(value, keep) for value in state)
    return state


def scatter_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of ``value``, which all processes have, if ``like`` of the same shape is shared out."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def scatter_optimizer(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The part of an optimizer's whole state that belongs to this process's part of the parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    state = dict(state_dict["state"])
    for number, parameter in zip(numbers, parameters, strict=False):  # the optimizer complains if they do not fit
        state[number] = {
            name: scatter_like(value, parameter) if isinstance(value, Tensor) else value
            for name, value in state.get(number, {}).items()
        }
    return {**state_dict, "state": {number: values for number, values in state.items() if values}}


def unsharded(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """A model that any process may run as often as it likes; called by all of them.

    Args:
        model: returned as it is unless it is sharded.
        build: makes another of its kind, to take its parameters.
    """
    if not is_sharded(model):
        return model
    whole = build()
    whole.load_state_dict(gather(model.state_dict(), keep=True))
    return whole
