"""Values of a configuration that no model can be made of, told before one is made."""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY

from ..config import find_value
from .build import find_registered

__all__ = ["COUNT", "NOT_NEGATIVE", "SHARE", "Range", "check_model_config", "check_ranges"]

Range = tuple[float, float]
COUNT: Range = (1, math.inf)
NOT_NEGATIVE: Range = (0, math.inf)
SHARE: Range = (0, 1)

_RANGES = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": COUNT,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": COUNT,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": COUNT,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": COUNT,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": COUNT,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": COUNT,
    "MODEL.MASK_FORMER.NUM_FEATURE_LEVELS": COUNT,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": COUNT,
    "MODEL.MASK_FORMER.HIDDEN_DIM": COUNT,
    "MODEL.MASK_FORMER.NHEADS": COUNT,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": COUNT,
    "MODEL.MASK_FORMER.DROPOUT": SHARE,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": NOT_NEGATIVE,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": NOT_NEGATIVE,
    "MODEL.MASK_FORMER.DICE_WEIGHT": NOT_NEGATIVE,
    "MODEL.MASK_FORMER.MASK_WEIGHT": NOT_NEGATIVE,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": SHARE,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": SHARE,
    "TEST.DETECTIONS_PER_IMAGE": NOT_NEGATIVE,
}


def check_ranges(cfg: CfgNode, ranges: Mapping[str, Range]) -> None:
    """Check numbers of a configuration.

    Args:
        cfg: the configuration.
        ranges: the least and the largest value of each key, both included.

    Raises:
        ValueError: one is out of its range.
    """
    for key, (least, most) in ranges.items():
        value = find_value(cfg, key)
        if not least <= value <= most:  # nor is NaN in any range
            expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"{key} is {value}, expected {expected}.")


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
    if model.BACKBONE.NAME == "build_resnet_backbone":
        _check_resnet(model.RESNETS)
    check_ranges(cfg, _RANGES)
    means, deviations = model.PIXEL_MEAN, model.PIXEL_STD
    if len(means) != len(deviations) or 0 in deviations:
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {means} and MODEL.PIXEL_STD {deviations}; give as many of both, one for each channel "
            "of an image, and no standard deviation of 0."
        )


def _check_resnet(resnets: CfgNode) -> None:
    for key, given, known in (
        ("DEPTH", [resnets.DEPTH], (18, 34, 50, 101, 152)),
        ("OUT_FEATURES", resnets.OUT_FEATURES, ("stem", "res2", "res3", "res4", "res5")),
    ):
        if not given or not set(given) <= set(known):
            raise ValueError(f"MODEL.RESNETS.{key} is {resnets[key]}, expected {', '.join(map(str, known))}.")
