"""One optimizer step: gradient accumulation, mixed precision, and what is done where numbers are not finite."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from mask2former.engine.parallel import GradientSync
from mask2former.engine.sharding import local_part, scatter_optimizer
from mask2former.engine.skipped_steps import NormStatistics, SkippedSteps, StepReport

__all__ = ["StepTrainer"]


class StepTrainer(SimpleTrainer):
    """Detectron2's loop body with accumulation and mixed precision, on GPU and CPU.

    One step takes ``accumulation_steps`` batches from the loader and applies the mean of their gradients. That equals
    the gradient of the joint batch where the loss is a mean over images; Mask2Former's mask losses are means over the
    targets of a batch, so there each batch counts the same, however many targets it has.

    A step whose losses or gradients are NaN or infinite, in any process, is skipped in all of them: the optimizer does
    not step, and norms forget its statistics. Each is told in a warning and counted, see
    :class:`~mask2former.engine.skipped_steps.SkippedSteps`. With float16, steps whose scaled gradients overflow are
    skipped and counted too; they lower the scale, and mean nothing worse while it is above 1.

    Args:
        model: returns a dict of scalar losses in training.
        data_loader: endless lists of samples.
        optimizer: steps on the accumulated gradients.
        accumulation_steps: batches a step.
        autocast_dtype: of the forward pass; None for float32. float16 scales the loss.
        max_skipped_steps: in a row; one more ends the run.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        autocast_dtype: torch.dtype | None = None,
        max_skipped_steps: int = 0,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.autocast_dtype = autocast_dtype
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=autocast_dtype == torch.float16)
        self.skipped_steps = SkippedSteps(max_skipped_steps)
        self.gradient_sync = GradientSync(model)
        self._norm_statistics = NormStatistics(model)

    def run_step(self) -> None:
        """Take or skip one optimizer step, and log its losses, averaged over batches and processes.

        Raises:
            FloatingPointError: in all processes, if too many steps in a row were skipped.
        """
        assert self.model.training, "The model was put into eval mode; a hook must put it back."
        self.optimizer.zero_grad()
        self._norm_statistics.remember()
        shares: list[tuple[list[str], torch.Tensor]] = []
        file_names: list[str] = []
        data_time = 0.0
        for batch in range(self.accumulation_steps):
            start = time.perf_counter()
            samples = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            file_names += [str(sample.get("file_name", "unnamed image")) for sample in samples]
            with self.gradient_sync(last=batch == self.accumulation_steps - 1):
                shares.append(self._forward_backward(samples))
        losses: dict[str, float] = defaultdict(float)
        numbers = iter(torch.cat([values for _, values in shares]).tolist())  # one transfer from the device
        for names, _ in shares:
            for name in names:
                losses[name] += next(numbers)
        mine = StepReport(dict(losses), self._gradients_are_finite(), data_time, file_names)
        everyone: list[StepReport] = comm.all_gather(mine)
        self._apply_gradients(everyone)
        self._log(everyone)

    def _forward_backward(self, samples: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
        """Add the gradients of one batch's share; returns the names of the losses and that share of each (L,)."""
        with torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            losses = self.model(samples)
        # One tensor, because for a GPU each of dozens of losses would be a kernel of its own.
        share = torch.stack([loss.float() for loss in losses.values()]) / self.accumulation_steps
        self.grad_scaler.scale(share.sum()).backward()
        return list(losses), share.detach()

    def _apply_gradients(self, everyone: list[StepReport]) -> None:
        """Step unless a number of a process is not finite; the same in every process."""
        if all(report.is_finite for report in everyone):
            self._step()
            self.skipped_steps.reset_row()
            return
        self._norm_statistics.restore()
        scale = 1.0
        if self.grad_scaler.is_enabled() and all(report.losses_are_finite for report in everyone):
            scale = self.grad_scaler.get_scale()
            self._step()  # which finds the same, and leaves it out
        self.skipped_steps.add(self.iter, everyone, loss_scale=scale)

    def _step(self) -> None:
        self.grad_scaler.unscale_(self.optimizer)  # a fused optimizer would do it after gradients are clipped
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _gradients_are_finite(self) -> bool:
        """Of this process's part of them, where they are shared out."""
        groups = self.optimizer.param_groups
        gradients = [local_part(p.grad) for group in groups for p in group["params"] if p.grad is not None]
        largest = nn.utils.get_total_norm([g for g in gradients if g.numel() > 0], norm_type=math.inf)
        return math.isfinite(largest.item())

    def _log(self, everyone: list[StepReport]) -> None:
        """Put means over the processes into the event storage; no loss of a step that has one which is not finite."""
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(report.data_time for report in everyone))
        storage.put_scalar("skipped_steps", self.skipped_steps.total, smoothing_hint=False)
        if not all(report.losses_are_finite for report in everyone):
            return
        means = {name: sum(report.losses[name] for report in everyone) / len(everyone) for name in everyone[0].losses}
        storage.put_scalar("total_loss", sum(means.values()))
        if len(means) > 1:
            storage.put_scalars(**means)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_steps": self.skipped_steps.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        optimizer = scatter_optimizer(state_dict["optimizer"], self.optimizer)
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        if state_dict.get("grad_scaler"):  # empty unless the loss is scaled
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if "skipped_steps" in state_dict:  # not in Detectron2's checkpoints
            self.skipped_steps.load_state_dict(state_dict["skipped_steps"])
