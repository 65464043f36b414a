"""What ``MODEL.INFERENCE`` asks for."""

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import nn

from .inference import Compile, Dtype, optimize_for_inference
from .memory import keep_freed_memory

__all__ = ["prepare_for_inference"]


def _from_config(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    inference = cfg.MODEL.INFERENCE
    return {
        "model": model,
        "optimize": inference.OPTIMIZE,
        "dtype": inference.DTYPE,
        "compile_mode": inference.COMPILE,
        "cuda_graphs": inference.CUDA_GRAPHS,
        "keep_memory": inference.KEEP_MEMORY,
    }


@configurable(from_config=_from_config)
def prepare_for_inference(
    model: Any, *, optimize: bool | None, dtype: Dtype, compile_mode: Compile, cuda_graphs: bool, keep_memory: bool
) -> nn.Module:
    """``prepare_for_inference(cfg, model)``: the model, or a faster copy of it if ``MODEL.INFERENCE`` asks for one.

    Args:
        model: with its weights; put in evaluation mode.
        optimize: make a copy by :func:`optimize_for_inference`; so do the next two if they are not the defaults. None
            does not.
        dtype: as there.
        compile_mode: as there.
        cuda_graphs: as there.
        keep_memory: call :func:`keep_freed_memory`.

    Raises:
        ValueError: ``optimize`` is something else, as "false" on a command line, which would count as true.
    """
    if optimize not in (None, True, False):
        raise ValueError(f"MODEL.INFERENCE.OPTIMIZE is {optimize!r}, expected True, False or None.")
    model.eval()
    if keep_memory:
        keep_freed_memory()
    if optimize or dtype != "float32" or compile_mode != "none":
        return optimize_for_inference(model, dtype=dtype, compile_mode=compile_mode, cuda_graphs=cuda_graphs)
    return model
