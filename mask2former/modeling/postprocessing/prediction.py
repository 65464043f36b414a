"""What the network says about an image, and how its masks lie in the result."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ...ops.masks import Resizing, make_resizing

__all__ = ["MaskGeometry", "QueryPrediction"]


@dataclass(frozen=True)
class MaskGeometry:
    """From the network's masks to the output: resize to the padded input, cut the padding off, resize to the output.

    Attributes:
        padded_size: (height, width) of the padded batch.
        image_size: (height, width) of the image in it, at the top left.
        output_size: (height, width) of the result.
    """

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]

    def to_padded(self, maps: Tensor) -> Tensor:
        """Resize (C, h, w) to (C, *padded_size), bilinear."""
        return _resize(maps.float(), self.padded_size)

    def padded_to_output(self, maps: Tensor) -> Tensor:
        """Crop and resize (C, *padded_size) to (C, *output_size), bilinear."""
        height, width = self.image_size
        return _resize(maps[:, :height, :width], self.output_size)

    def to_output(self, maps: Tensor) -> Tensor:
        """Resize (C, h, w) to (C, *output_size)."""
        return self.padded_to_output(self.to_padded(maps))

    def resizing(self, maps: Tensor) -> Resizing:
        """``to_output`` of ``maps`` (C, h, w), on their device, for the operators of :mod:`mask2former.ops.masks`."""
        size = (maps.shape[-2], maps.shape[-1])
        return make_resizing(size, self.padded_size, self.image_size, self.output_size, maps.device)


@dataclass(frozen=True)
class QueryPrediction:
    """What the network says about one image.

    Attributes:
        class_logits: (Q, K + 1), "no object" last.
        mask_logits: (Q, h, w), at the network's resolution.
        geometry: how to get from there to the output.
    """

    class_logits: Tensor
    mask_logits: Tensor
    geometry: MaskGeometry


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
