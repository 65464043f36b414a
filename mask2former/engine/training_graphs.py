"""``SOLVER.CUDA_GRAPHS``, and what does not go together with it."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn

from mask2former.config import find_value
from mask2former.modeling.optimize import record_training_graphs
from mask2former.processors import is_nvidia

__all__ = ["WITHOUT_GRAPHS", "may_use_graphs", "use_graphs"]

_logger = logging.getLogger(__name__)

# Keys that turn on what waits for the GPU inside the network, or moves its weights.
WITHOUT_GRAPHS = (
    "MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING",
    "MODEL.SWIN.USE_CHECKPOINT",
    "SOLVER.FSDP.ENABLED",
)
_NORMS = ("MODEL.RESNETS.NORM", "MODEL.SEM_SEG_HEAD.NORM", "MODEL.TIMM.NORM")


def may_use_graphs(value: Callable[[str], Any], processes: int) -> bool:
    """Whether a training on GPUs can have ``SOLVER.CUDA_GRAPHS``, as far as the configuration tells.

    Args:
        value: of a key of the configuration.
        processes: of the training.
    """
    return (
        is_nvidia(torch.device("cuda"))
        and value("MODEL.META_ARCHITECTURE") == "MaskFormer"
        and not any(map(value, WITHOUT_GRAPHS))
        and not (processes > 1 and any("SyncBN" in str(value(key)) for key in _NORMS))
    )


def use_graphs(cfg: CfgNode, model: nn.Module) -> None:
    """Let the network of a model that is trained be recorded, in place, if the configuration asks for it.

    On a CPU nothing is recorded, so that a configuration serves there too.

    Raises:
        ValueError: if it also asks for what does not go together with that, or the model has no such network.
    """
    if not cfg.SOLVER.CUDA_GRAPHS:
        return
    for key in WITHOUT_GRAPHS:
        if value := find_value(cfg, key):
            raise ValueError(
                f"SOLVER.CUDA_GRAPHS is True and {key} {value}, which do not go together: turn one of them off."
            )
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        _logger.info(f"SOLVER.CUDA_GRAPHS: training is on {cfg.MODEL.DEVICE!r}, so there are none.")
        return
    # They wait for other processes, which may have recorded the size of this batch already.
    waiting = any(isinstance(module, (nn.SyncBatchNorm, NaiveSyncBatchNorm)) for module in model.modules())
    if waiting and comm.get_world_size() > 1:
        raise ValueError(
            "SOLVER.CUDA_GRAPHS is True, but the model has synchronised batch norms, which do not go together in "
            "several processes: set it to False, or MODEL.RESNETS.NORM to 'FrozenBN' or 'BN'."
        )
    record_training_graphs(model)
