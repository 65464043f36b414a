"""Values of a configuration that no model can be made of, told before one is made."""

import functools
import math

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY

from .build import find_registered

__all__ = ["check_model_config"]

_COUNT, _NOT_NEGATIVE, _SHARE = (1, math.inf), (0, math.inf), (0, 1)

# The least and the largest value of keys under MODEL, both included.
_RANGES = {
    "SEM_SEG_HEAD.NUM_CLASSES": _COUNT,
    "SEM_SEG_HEAD.CONVS_DIM": _COUNT,
    "SEM_SEG_HEAD.MASK_DIM": _COUNT,
    "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": _NOT_NEGATIVE,
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": _COUNT,
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": _COUNT,
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": _COUNT,
    "MASK_FORMER.NUM_FEATURE_LEVELS": _COUNT,
    "MASK_FORMER.NUM_OBJECT_QUERIES": _COUNT,
    "MASK_FORMER.HIDDEN_DIM": _COUNT,
    "MASK_FORMER.NHEADS": _COUNT,
    "MASK_FORMER.DIM_FEEDFORWARD": _COUNT,
    "MASK_FORMER.DROPOUT": _SHARE,
    "MASK_FORMER.NO_OBJECT_WEIGHT": _NOT_NEGATIVE,
    "MASK_FORMER.CLASS_WEIGHT": _NOT_NEGATIVE,
    "MASK_FORMER.DICE_WEIGHT": _NOT_NEGATIVE,
    "MASK_FORMER.MASK_WEIGHT": _NOT_NEGATIVE,
    "MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": _SHARE,
    "MASK_FORMER.TEST.OVERLAP_THRESHOLD": _SHARE,
}


def check_model_config(cfg: CfgNode) -> None:
    """Check names, numbers and shares that would otherwise end in an error inside a layer, or in a model of no use.

    Raises:
        ValueError: one is wrong.
    """
    model = cfg.MODEL
    find_registered(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", model.BACKBONE.NAME)
    find_registered(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME)
    for key, norm in (("RESNETS.NORM", model.RESNETS.NORM), ("SEM_SEG_HEAD.NORM", model.SEM_SEG_HEAD.NORM)):
        try:
            get_norm(norm, out_channels=32)
        except KeyError as error:
            raise ValueError(
                f'MODEL.{key} is {norm!r}; expected "BN", "SyncBN", "FrozenBN", "GN", "LN" or "".'
            ) from error
    for key, (least, most) in _RANGES.items():
        value = functools.reduce(getattr, key.split("."), model)
        if not least <= value <= most:  # nor is NaN in any range
            expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"MODEL.{key} is {value}, expected {expected}.")
    means, deviations = model.PIXEL_MEAN, model.PIXEL_STD
    if len(means) != len(deviations) or 0 in deviations:
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {means} and MODEL.PIXEL_STD {deviations}; give as many of both, one for each channel "
            "of an image, and no standard deviation of 0."
        )
