"""Loading weights of whole models only: with those of a backbone alone, the result would be noise."""

from typing import Any, TypeVar

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from mask2former.engine.checkpointer import NAME_A_TRAINED_MODEL, WholeModelCheckpointer
from mask2former.modeling.build import find_registered

__all__ = ["build_whole_model", "load_whole_model"]

_Model = TypeVar("_Model", bound=nn.Module)


def build_whole_model(cfg: CfgNode) -> Any:
    """Build the model of a configuration, with its weights, to segment with.

    Raises:
        FileNotFoundError: there are no weights.
        OSError: they cannot be downloaded.
        ValueError: it is no Mask2Former, or the weights are not of a whole one.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if not hasattr(find_registered(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", name), "with_outputs"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name!r}, which is evaluated by `mask2former eval` alone; expected "
            "'MaskFormer', as in all of configs/, or a subclass of it."
        )
    return load_whole_model(build_model(cfg), cfg.MODEL.WEIGHTS)


def load_whole_model(model: _Model, path: str) -> _Model:
    """Load weights into a model, in place, and return it.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it cannot be downloaded.
        ValueError: it is not a whole model of this configuration.
    """
    if not path:
        raise FileNotFoundError(f"MODEL.WEIGHTS is empty; {NAME_A_TRAINED_MODEL}")
    WholeModelCheckpointer(model).load(path)
    return model
