"""Steps that are not taken, since a loss or a gradient is NaN or infinite: counted, told, and sometimes too many."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["NormStatistics", "SkippedSteps", "StepReport"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What one process has to say of one step, before the optimizer's.

    Args:
        losses: by name, summed over its batches.
        gradients_are_finite: all of them; averaged over the processes or this process's shard.
        data_time: seconds spent waiting for samples.
        file_names: of its images.
    """

    losses: dict[str, float]
    gradients_are_finite: bool
    data_time: float
    file_names: list[str]

    @property
    def losses_are_finite(self) -> bool:
        """Whether each of its losses is a number."""
        return all(map(math.isfinite, self.losses.values()))

    @property
    def is_finite(self) -> bool:
        """Whether nothing speaks against the step."""
        return self.gradients_are_finite and self.losses_are_finite


class SkippedSteps:
    """Counts skipped steps, says why each was, and ends the run when too many in a row were.

    Args:
        max_in_a_row: one more is an error.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.total = 0
        self.in_a_row = 0

    def reset_row(self) -> None:
        """A step was taken."""
        self.in_a_row = 0

    def add(self, iteration: int, reports: list[StepReport], loss_scale: float = 1.0) -> None:
        """Count a step that is skipped.

        Args:
            iteration: of the run.
            reports: of all processes, the same in each of them.
            loss_scale: that the gradients were multiplied by; above 1 it may alone be to blame, and is not held against
                the run.

        Raises:
            FloatingPointError: if it is one too many in a row.
        """
        self.total += 1
        if loss_scale > 1:
            logger.info(
                f"Gradients overflow at iteration {iteration} with the losses scaled by {loss_scale:g}: the step is "
                f"skipped and the scale lowered ({self.total} steps skipped so far)."
            )
            return
        self.in_a_row += 1
        what = _describe(iteration, reports)
        if self.in_a_row > self.max_in_a_row:
            raise FloatingPointError(
                f"{what} Expected finite losses and gradients, but {self.in_a_row} steps in a row had others, and "
                f"SOLVER.MAX_SKIPPED_STEPS is {self.max_in_a_row}. Weights and checkpoints are not affected. Look at "
                "these images and their annotations; otherwise lower SOLVER.BASE_LR, or set SOLVER.AMP.DTYPE to "
                "'bfloat16' or SOLVER.AMP.ENABLED to False. Go on with --resume."
            )
        logger.warning(
            f"{what} The step is skipped ({self.in_a_row} in a row, {self.total} so far). If this happens often, look "
            "at these images and their annotations, lower SOLVER.BASE_LR or train without SOLVER.AMP."
        )

    def state_dict(self) -> dict[str, int]:
        """Both counts."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting from ``state_dict``."""
        self.total, self.in_a_row = state_dict["total"], state_dict["in_a_row"]


def _describe(iteration: int, reports: list[StepReport]) -> str:
    """Which numbers are not finite, of the processes whose losses are to blame, or else of all."""
    broken = [
        f"process {rank}: {report.losses}, images {report.file_names}"
        for rank, report in enumerate(reports)
        if not report.losses_are_finite
    ]
    if broken:
        return f"A loss is infinite or NaN at iteration {iteration} ({'; '.join(broken)})."
    images = "; ".join(f"process {rank}: {report.file_names}" for rank, report in enumerate(reports))
    return f"A gradient is infinite or NaN at iteration {iteration}, and all losses finite (images of {images})."


class NormStatistics:
    """The running statistics of batch norms, which one NaN would spoil for ever.

    Args:
        model: whose norms are meant, if they have any.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        self._buffers: list[Tensor] = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._remembered: list[Tensor] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Keep a copy of what they are."""
        self._remembered = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Make them what they were."""
        for buffer, before in zip(self._buffers, self._remembered, strict=True):
            buffer.copy_(before)
