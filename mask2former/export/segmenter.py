"""An exported network in the place of a model's own, so that evaluators, tiles and post-processing work as ever."""

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling.mask_former import MaskFormer
from .runtime import ExportedModel

__all__ = ["use_exported_network"]


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
    num_classes = model.criterion.num_classes
    if len(info.class_names) != num_classes:
        raise ValueError(
            f"{exported.path} has {len(info.class_names)} classes, the configuration {num_classes}; give the "
            "configuration that was exported."
        )
    model.sem_seg_head = _ExportedNetwork(exported, model.pixel_mean, model.pixel_std, num_classes)
    model.backbone = nn.Identity()


class _ExportedNetwork(nn.Module):
    """Stands where the head was: normalised images in, predictions out."""

    def __init__(self, exported: ExportedModel, pixel_mean: Tensor, pixel_std: Tensor, num_classes: int) -> None:
        super().__init__()
        self.exported = exported
        self.num_classes = num_classes
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, C, H, W), whose padding is 0, to class and mask logits."""
        pixels = images * self.pixel_std + self.pixel_mean  # the graph normalises by itself
        if self.exported.info.input_type == "uint8":
            # Exact for pictures. Padding becomes the mean rounded, at most half a level off.
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        return self.exported(pixels)
