"""An exported network in the place of a model's own, so that evaluators, tiles and post-processing work as ever."""

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling.mask_former import MaskFormer
from .runtime import ExportedModel

__all__ = ["ExportedNetwork", "use_exported_network"]


def use_exported_network(model: MaskFormer, exported: ExportedModel) -> None:
    """Let ``model`` compute its predictions by ``exported``, in place. What comes before and after stays eager.

    Args:
        model: of the same configuration; its weights are given up.
        exported: with raw outputs.

    Raises:
        ValueError: if post-processing is inside, or the model normalises or counts classes in another way.
    """
    info = exported.info
    if info.postprocessing != "none":
        raise ValueError(
            f"{exported.path} does {info.postprocessing} post-processing inside, but evaluators need the raw outputs; "
            "export with --with-postprocessing none."
        )
    own = [model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist()]
    if not np.allclose(own, [info.pixel_mean, info.pixel_std]):
        raise ValueError(
            f"{exported.path} normalises with mean {info.pixel_mean} and deviation {info.pixel_std}, the configuration "
            f"with {own[0]} and {own[1]}; give the configuration that was exported."
        )
    if len(info.class_names) != model.num_classes:
        raise ValueError(
            f"{exported.path} has {len(info.class_names)} classes, the configuration {model.num_classes}; give the "
            "configuration that was exported."
        )
    model.sem_seg_head = ExportedNetwork(exported, model.pixel_mean, model.pixel_std)
    model.backbone = nn.Identity()


class ExportedNetwork(nn.Module):
    """Stands where the head was: normalised images in, predictions out."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, exported: ExportedModel, pixel_mean: Tensor, pixel_std: Tensor) -> None:
        super().__init__()
        self.exported = exported
        self.num_classes = len(exported.info.class_names)
        self.register_buffer("pixel_mean", pixel_mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", pixel_std.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, C, H, W), whose padding is 0, to class and mask logits."""
        sizes = [self._unpadded_size(image) for image in images]
        if len(set(sizes)) > 1:
            each = [self(image[None]) for image in images]
            return {name: torch.cat([outputs[name] for outputs in each]) for name in each[0]}
        height, width = sizes[0]
        return self.from_pixels(images[..., :height, :width] * self.pixel_std + self.pixel_mean)

    def from_pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W), 0..255, to class and mask logits; the graph normalises and pads by itself."""
        if self.exported.info.input_type == "uint8" and images.is_floating_point():
            # Exact for pictures. Padding that is left becomes the mean rounded, at most half a level off.
            images = images.round().clamp(0, 255)
        return self.exported(images.to(getattr(torch, self.exported.info.input_type)))

    def _unpadded_size(self, image: Tensor) -> tuple[int, int]:
        """(height, width) of an image without as much of its padding as the graph puts there again."""
        used = image.ne(0).any(0)
        least = [max(side - self.exported.info.size_divisibility + 1, 1) for side in used.shape]
        ends = [int(used.any(dim).nonzero().amax()) + 1 if used.any() else 0 for dim in (1, 0)]
        return max(ends[0], least[0]), max(ends[1], least[1])
