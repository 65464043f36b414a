"""``SOLVER.CUDA_GRAPHS``, and what does not go together with it."""

from detectron2.config import CfgNode
from torch import nn

from mask2former.modeling.optimize import record_training_graphs

__all__ = ["WITHOUT_GRAPHS", "use_graphs"]

# Keys that turn on what waits for the GPU inside the network, or moves its weights.
WITHOUT_GRAPHS = (
    "MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING",
    "MODEL.SWIN.USE_CHECKPOINT",
    "SOLVER.FSDP.ENABLED",
)


def use_graphs(cfg: CfgNode, model: nn.Module) -> None:
    """Let the network of a model that is trained be recorded, in place, if the configuration asks for it.

    Raises:
        ValueError: if it also asks for what does not go together with that, or the model has no such network on a GPU.
    """
    if not cfg.SOLVER.CUDA_GRAPHS:
        return
    for key in WITHOUT_GRAPHS:
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value:
            raise ValueError(
                f"SOLVER.CUDA_GRAPHS is True and {key} {value}, which do not go together: turn one of them off."
            )
    record_training_graphs(model)
