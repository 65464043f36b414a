"""One optimizer step: gradient accumulation, mixed precision, and a check that the losses are finite."""

import logging
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["StepTrainer", "amp_dtype"]

logger = logging.getLogger(__name__)

_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Read the autocast type from ``SOLVER.AMP``; None trains in float32.

    Raises:
        ValueError: if the type is unknown, or float16 is asked for on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name, on_gpu = cfg.SOLVER.AMP.DTYPE, cfg.MODEL.DEVICE.startswith("cuda")
    if name == "auto":
        name = "float16" if on_gpu else "bfloat16"
    if name not in _AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {name!r}; expected 'auto' or one of {sorted(_AMP_DTYPES)}.")
    if name == "float16" and not on_gpu:
        raise ValueError("SOLVER.AMP.DTYPE float16 trains on a GPU only; use 'bfloat16' or 'auto' on a CPU.")
    return _AMP_DTYPES[name]


class StepTrainer(SimpleTrainer):
    """Detectron2's loop body with accumulation and mixed precision, on GPU and CPU.

    One step takes ``accumulation_steps`` batches from the loader and applies the mean of their gradients. That equals
    the gradient of the joint batch where the loss is a mean over images; Mask2Former's mask losses are means over the
    targets of a batch, so there each batch counts the same, however many targets it has.

    A loss that is NaN or infinite ends the run before the optimizer's step, so that weights and checkpoints stay whole.
    Where the losses are finite and only a gradient is not, as an overflow can cause, the step is left
    out with a warning, and training goes on.

    Args:
        model: returns a dict of scalar losses in training.
        data_loader: endless lists of samples.
        optimizer: steps on the accumulated gradients.
        accumulation_steps: batches a step.
        autocast_dtype: of the forward pass; None for float32. float16 scales the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.autocast_dtype = autocast_dtype
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=autocast_dtype == torch.float16)

    def run_step(self) -> None:
        """Take one optimizer step and log its losses, averaged over batches and processes."""
        assert self.model.training, "The model was put into eval mode; a hook must put it back."
        self.optimizer.zero_grad()
        totals: dict[str, torch.Tensor] = {}
        file_names: list[str] = []
        data_time = 0.0
        for batch in range(self.accumulation_steps):
            start = time.perf_counter()
            samples = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            file_names += [str(sample.get("file_name", "unnamed image")) for sample in samples]
            with self._gradient_sync(last=batch == self.accumulation_steps - 1):
                for name, loss in self._forward_backward(samples).items():
                    totals[name] = totals.get(name, 0) + loss
        self._log_losses(totals, data_time, file_names)
        self._apply_gradients(file_names)

    def _forward_backward(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Add the gradients of one batch's share; returns that share of each loss."""
        with torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            losses = self.model(samples)
        losses = {name: loss / self.accumulation_steps for name, loss in losses.items()}
        self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _apply_gradients(self, file_names: list[str]) -> None:
        if self.grad_scaler.is_enabled():  # leaves out such steps by itself
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        elif self._gradients_are_finite():
            self.optimizer.step()
        else:
            logger.warning(
                f"A gradient is infinite or NaN at iteration {self.iter}, so the step is left out. Images: "
                f"{file_names}. If this happens often, lower SOLVER.BASE_LR or train without SOLVER.AMP."
            )

    def _gradients_are_finite(self) -> bool:
        """The same in every process, since gradients are averaged over them."""
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return math.isfinite(nn.utils.get_total_norm(gradients, norm_type=math.inf).item())

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Gradients travel between processes once a step, with its last batch."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _log_losses(self, losses: dict[str, torch.Tensor], data_time: float, file_names: list[str]) -> None:
        """Put the losses into the event storage.

        Raises:
            FloatingPointError: if a loss of this process, or on the main process of any, is not finite.
        """
        # One transfer from the device, not one a loss.
        values = torch.stack([loss.float() for loss in losses.values()]).tolist()
        mine = dict(zip(losses, values, strict=True))
        broken = [] if all(map(math.isfinite, values)) else [(comm.get_rank(), mine, file_names)]
        everyone = comm.gather((mine, data_time, broken))
        for rank, bad_losses, names in [b for _, _, found in everyone for b in found] or broken:
            raise FloatingPointError(
                f"The loss became infinite or NaN at iteration {self.iter} (process {rank}): {bad_losses}. Images: "
                f"{names}. The last checkpoint is not affected. Look at these images and their annotations; otherwise "
                "lower SOLVER.BASE_LR, or set SOLVER.AMP.DTYPE to 'bfloat16'."
            )
        if comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalar("data_time", max(seconds for _, seconds, _ in everyone))
            means = {name: sum(theirs[name] for theirs, _, _ in everyone) / len(everyone) for name in mine}
            storage.put_scalar("total_loss", sum(means.values()))
            if len(means) > 1:
                storage.put_scalars(**means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty unless the loss is scaled
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
