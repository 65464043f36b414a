"""The feature pyramid of ViTDet (Li et al., ECCV 2022, Section 3): all scales from the one that a plain ViT has."""

from collections.abc import Sequence
from itertools import pairwise

from detectron2.modeling import Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor

__all__ = ["build_simple_pyramid"]

_STRIDE = 16  # of the ViT


def build_simple_pyramid(in_channels: int, strides: Sequence[int], out_channels: int) -> SimpleFeaturePyramid:
    """Make Detectron2's pyramid of a feature of stride 16.

    Args:
        in_channels: of the feature.
        strides: of the pyramid, each twice the one before, from 4, 8, 16 and 32.
        out_channels: of each of its maps.

    Returns:
        A module from the feature, (N, in_channels, H, W), to a dict of maps in the order of ``strides``.

    Raises:
        ValueError: a stride is left out between others.
    """
    if any(after != 2 * before for before, after in pairwise(strides)):
        raise ValueError(
            f"MODEL.TIMM.OUT_FEATURES asks for the strides {list(strides)} of a plain ViT's pyramid; leave none out "
            "between them."
        )
    scale_factors = [_STRIDE / stride for stride in strides]
    return SimpleFeaturePyramid(_Feature(in_channels), "feature", out_channels, scale_factors, norm="LN")


class _Feature(Backbone):
    """A feature that is there already, where the pyramid expects the network that computes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._out_features = ["feature"]
        self._out_feature_channels = {"feature": channels}
        self._out_feature_strides = {"feature": _STRIDE}

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        return {"feature": feature}
