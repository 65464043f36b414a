"""The type in which training computes what it need not compute in float32."""

import logging

import torch
from detectron2.config import CfgNode

from mask2former.modeling.optimize import cpu_has_bfloat16

__all__ = ["amp_dtype"]

_logger = logging.getLogger(__name__)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Read the autocast type from ``SOLVER.AMP``; None trains in float32.

    Raises:
        ValueError: if the type is unknown, or float16 is asked for on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name, on_gpu = cfg.SOLVER.AMP.DTYPE, cfg.MODEL.DEVICE.startswith("cuda")
    if name == "auto" and on_gpu:
        return torch.float16
    if name == "auto" and cpu_has_bfloat16():
        return torch.bfloat16
    if name == "auto":
        _logger.info("SOLVER.AMP: this processor has no units for bfloat16, so training is in float32.")
        return None
    if name not in _DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {name!r}; expected 'auto' or one of {sorted(_DTYPES)}.")
    if not on_gpu:
        _check_cpu(name)
    return _DTYPES[name]


def _check_cpu(name: str) -> None:
    if name == "float16":
        raise ValueError("SOLVER.AMP.DTYPE float16 trains on a GPU only; use 'bfloat16' or 'auto' on a CPU.")
    if not cpu_has_bfloat16():
        _logger.warning(
            "SOLVER.AMP.DTYPE is 'bfloat16', for which this processor has no units: steps take ten times as long as in "
            "float32, or more. 'auto' would train in float32."
        )
