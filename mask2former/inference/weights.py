"""Loading weights of whole models only: with those of a backbone alone, the result would be noise."""

from typing import Any, TypeVar

from torch import nn

from mask2former.engine.checkpointer import Mask2FormerCheckpointer

__all__ = ["load_whole_model"]

_Model = TypeVar("_Model", bound=nn.Module)
_REMEDY = "name a trained model: --opts MODEL.WEIGHTS model.pth on a command line, weights= in Python"


def load_whole_model(model: _Model, path: str) -> _Model:
    """Load weights into a model, in place, and return it.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it cannot be downloaded.
        ValueError: it is not a whole model of this configuration.
    """
    if not path:
        raise FileNotFoundError(f"MODEL.WEIGHTS is empty; {_REMEDY}")
    _CompleteCheckpointer(model).load(path)
    return model


class _CompleteCheckpointer(Mask2FormerCheckpointer):
    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        of_another_shape = [name for name, *_ in incompatible.incorrect_shapes]
        absent = [key for key in (*incompatible.missing_keys, *of_another_shape) if key.startswith("sem_seg_head.")]
        if absent:
            raise ValueError(
                f"MODEL.WEIGHTS lacks {len(absent)} parameters of the head, {absent[0]} the first: it is not a "
                f"trained model of this configuration; {_REMEDY}"
            )
        return incompatible
