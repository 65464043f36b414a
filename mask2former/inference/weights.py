"""Loading weights of whole models only: with those of a backbone alone, the result would be noise."""

from typing import TypeVar

from torch import nn

from mask2former.engine.checkpointer import NAME_A_TRAINED_MODEL, WholeModelCheckpointer

__all__ = ["load_whole_model"]

_Model = TypeVar("_Model", bound=nn.Module)


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
