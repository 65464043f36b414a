"""A model in several processes: whole in each of them, or with its parameters shared out among them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mask2former.engine.mixed_precision import amp_dtype
from mask2former.engine.sharding import shard

__all__ = ["GradientSync", "parallelize"]

_COMPRESSION = {"none": None, "bfloat16": default_hooks.bf16_compress_hook, "float16": default_hooks.fp16_compress_hook}


def parallelize(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Prepare a model for the processes of this run, as ``SOLVER.DDP`` and ``SOLVER.FSDP`` say.

    Returns:
        The model itself if there is one process, or if its parameters are sharded, which happens in place and must
        come before the optimizer is built. Otherwise a ``DistributedDataParallel`` of it.

    Raises:
        ValueError: if the keys do not go together.
    """
    ddp, fsdp = cfg.SOLVER.DDP, cfg.SOLVER.FSDP
    if ddp.COMPRESSION not in _COMPRESSION:
        raise ValueError(f"SOLVER.DDP.COMPRESSION is {ddp.COMPRESSION!r}; expected one of {list(_COMPRESSION)}.")
    if fsdp.ENABLED and (ddp.STATIC_GRAPH or ddp.COMPRESSION != "none"):
        raise ValueError(
            f"SOLVER.FSDP.ENABLED is on with SOLVER.DDP.STATIC_GRAPH {ddp.STATIC_GRAPH} and SOLVER.DDP.COMPRESSION "
            f"{ddp.COMPRESSION!r}, but these keys are for DistributedDataParallel, which FSDP replaces: use either. "
            "SOLVER.FSDP.REDUCE_DTYPE compresses gradients of FSDP."
        )
    if comm.get_world_size() == 1:
        return model
    if fsdp.ENABLED:
        return shard(
            model,
            unit_parameters=fsdp.UNIT_PARAMETERS,
            param_dtype=_dtype("PARAM_DTYPE", fsdp.PARAM_DTYPE, cfg),
            reduce_dtype=_dtype("REDUCE_DTYPE", fsdp.REDUCE_DTYPE, cfg),
        )
    device_ids = [comm.get_local_rank()] if next(model.parameters()).is_cuda else None
    parallel = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids, static_graph=ddp.STATIC_GRAPH)
    if (hook := _COMPRESSION[ddp.COMPRESSION]) is not None:
        parallel.register_comm_hook(None, hook)
    return parallel


def _dtype(key: str, name: str, cfg: CfgNode) -> torch.dtype | None:
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"SOLVER.FSDP.{key} is {name!r}; expected 'float32' or 'bfloat16'.")
    if key == "PARAM_DTYPE" and name == "bfloat16" and amp_dtype(cfg) is None:
        raise ValueError(
            "SOLVER.FSDP.PARAM_DTYPE is 'bfloat16', which needs SOLVER.AMP.ENABLED True (and SOLVER.AMP.DTYPE bfloat16 "
            "on a CPU that has no units for it): set them too."
        )
    return None if name == "float32" else torch.bfloat16


class GradientSync:
    """Gradients travel between processes once a step, with the last of its batches.

    Args:
        model: of :func:`parallelize`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # A static graph is recorded in the first step, and fails if that begins without travelling.
        self._always = isinstance(model, DistributedDataParallel) and model.static_graph

    @contextmanager
    def __call__(self, last: bool) -> Iterator[None]:
        """A context for one batch's forward and backward pass.

        Args:
            last: whether it is the step's last.

        Raises:
            RuntimeError: a parameter got no gradient in the step before, for which DistributedDataParallel waits.
        """
        travel: AbstractContextManager[Any] = nullcontext()
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last)
        elif isinstance(self._model, DistributedDataParallel) and not last and not self._always:
            travel = self._model.no_sync()
        self._always = self._always and not last
        with travel:
            try:
                yield
            except RuntimeError as error:
                if not str(error).startswith("Expected to have finished reduction in the prior iteration"):
                    raise
                raise RuntimeError(
                    "Some parameters get no gradients, since nothing reads what they give, but each process waits for "
                    "those of all. If they are the same in every step, set SOLVER.DDP.STATIC_GRAPH True."
                ) from error
