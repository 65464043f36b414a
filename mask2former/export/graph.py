"""What is exported: a batch of pictures of one size to tensors, with nothing left to do before it."""

import logging
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling.mask_former import MaskFormer
from .half import HalfPrecisionNetwork
from .postprocessing import instances_of_batch, panoptic_of_batch, semantic_of_batch

__all__ = [
    "INPUT_NAME",
    "MAX_BATCH",
    "MAX_SIZE",
    "MIN_SIZE",
    "OUTPUT_NAMES",
    "ExportGraph",
    "InputType",
    "PostProcessing",
    "thing_classes_of",
]

PostProcessing = Literal["none", "semantic", "panoptic", "instance"]
InputType = Literal["uint8", "float32"]

INPUT_NAME = "images"
# Outputs in the graph's order, by what is done inside.
OUTPUT_NAMES: dict[PostProcessing, tuple[str, ...]] = {
    "none": ("pred_logits", "pred_masks"),
    "semantic": ("sem_seg",),
    "panoptic": ("panoptic_seg", "segment_ids", "segment_classes", "segment_scores"),
    "instance": ("scores", "classes", "boxes", "masks"),
}
# Heights and widths below this would make a coarsest feature map of one row or column, which PyTorch's exporter treats
# as a program of its own. The largest are bounds that its reasoning about sizes needs, not of the model.
MIN_SIZE, MAX_SIZE, MAX_BATCH = 33, 16384, 1024

logger = logging.getLogger(__name__)


class ExportGraph(nn.Module):
    """Normalise, pad, segment and post-process, in operations that every export format has.

    Batch, height and width stay free. The graph pads to the model's ``size_divisibility`` and cuts the padding off
    again, so any height and width from ``MIN_SIZE`` on will do, and results are those of ``MaskFormer`` for a batch of
    equally large images that are wanted at their own size. Tiles (``MODEL.MASK_FORMER.TEST.TILE_SIZE``) are not part
    of it.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    thing_classes: Tensor
    instance_classes: Tensor

    def __init__(self, model: MaskFormer, postprocessing: PostProcessing = "none", *, half: bool = False) -> None:
        """
        Args:
            model: in evaluation mode; it is not changed, and shares its parameters unless ``half``.
            postprocessing: what is done inside.
            half: compute in float16, but the pixel decoder, which overflows it, in float32.

        Raises:
            ValueError: if the post-processing is unknown, or the model trains, pads to nothing, has methods of its own
                in the place of what is exported, or needs to know which classes are things and does not.
        """
        super().__init__()
        if postprocessing not in get_args(PostProcessing):
            raise ValueError(
                f"post-processing is {postprocessing!r}, expected one of {', '.join(get_args(PostProcessing))}."
            )
        if model.training:
            raise ValueError("the model is in training mode, in which none can be exported; call model.eval() first.")
        if model.size_divisibility < 1:
            raise ValueError(
                f"the model pads to a multiple of {model.size_divisibility}; set MODEL.MASK_FORMER.SIZE_DIVISIBILITY "
                "to 32."
            )
        _look_for_own_methods(model, postprocessing)
        self.network = HalfPrecisionNetwork(model) if half else _Network(model)
        self.postprocessing = postprocessing
        self.divisor = model.size_divisibility
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.topk = min(model.test_topk_per_image, model.num_queries * model.num_classes)
        self.object_mask_threshold = model.object_mask_threshold
        self.overlap_threshold = model.overlap_threshold
        things = torch.zeros(model.num_classes, dtype=torch.bool, device=model.device)
        if postprocessing == "panoptic" or model.panoptic_on:
            ids = thing_classes_of(model)
            if ids is None:
                raise ValueError(
                    f"the data set {model.metadata.get('name')!r} does not say which of its classes are things, which "
                    "panoptic models must know; register it as a panoptic data set, or turn panoptic results off."
                )
            things[ids] = True
        self.register_buffer("thing_classes", things)
        # As in MaskFormer: only the classes of a panoptic model include stuff.
        self.register_buffer("instance_classes", things.clone() if model.panoptic_on else torch.ones_like(things))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Segment a batch.

        Args:
            images: (N, C, H, W) uint8 or float32 in 0..255, channels in the order of ``INPUT.FORMAT``.

        Returns:
            What ``OUTPUT_NAMES`` names:

            - none: class logits (N, Q, K + 1) and mask logits (N, Q, H' / 4, W' / 4), H' and W' with padding;
            - semantic: class scores (N, K, H, W);
            - panoptic: see :func:`~mask2former.export.postprocessing.panoptic_of_batch`;
            - instance: see :func:`~mask2former.export.postprocessing.instances_of_batch`.
        """
        height, width = images.shape[-2:]
        x = (images - self.pixel_mean) / self.pixel_std
        # Written so that a padded side is, for symbols too, plainly a multiple.
        pad_bottom = self.divisor * ((height + self.divisor - 1) // self.divisor) - height
        pad_right = self.divisor * ((width + self.divisor - 1) // self.divisor) - width
        x = F.pad(x, (0, pad_right, 0, pad_bottom))
        logits, masks = self.network(x)
        if self.postprocessing == "none":
            return logits, masks
        padded_size, size = (x.shape[-2], x.shape[-1]), (height, width)
        if self.postprocessing == "semantic":
            return (semantic_of_batch(logits, masks, padded_size, size),)
        if self.postprocessing == "panoptic":
            return panoptic_of_batch(
                logits,
                masks,
                padded_size,
                size,
                thing_classes=self.thing_classes,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        return instances_of_batch(
            logits, masks, padded_size, size, topk=self.topk, allowed_classes=self.instance_classes
        )


def thing_classes_of(model: MaskFormer) -> list[int] | None:
    """Contiguous ids of the countable classes; None if the model's data set does not tell them."""
    ids = model.metadata.get("thing_dataset_id_to_contiguous_id")
    return None if ids is None else sorted(set(ids.values()))


def _look_for_own_methods(model: MaskFormer, postprocessing: PostProcessing) -> None:
    """Complain about what a subclass does otherwise than the graph; a warning where that comes after the file."""
    name = type(model).__name__
    if own := list(filter(model.has_own, ("run_network", "predict_queries"))):
        raise ValueError(
            f"{name} has its own {' and '.join(own)}, but what is exported is the backbone, the head and the rules of "
            "MaskFormer, so results would differ; move what it does into the backbone or the head, or, if it comes of "
            "optimize_for_inference, export the model before that, as load(..., optimize=False) gives it."
        )
    results = ("forward", "postprocess", "semantic_inference", "panoptic_inference", "instance_inference")
    inside = ("forward", "postprocess", f"{postprocessing}_inference")
    if postprocessing != "none" and (own := list(filter(model.has_own, inside))):
        raise ValueError(
            f"{name} has its own {' and '.join(own)}, but {postprocessing} post-processing inside a file is that of "
            "MaskFormer, so results would differ; export with post-processing none, and do it in your program."
        )
    if postprocessing == "none" and (own := list(filter(model.has_own, results))):
        logger.warning(
            "%s has its own %s, which is no part of the file: a program must do it by itself, and mask2former gives "
            "the file's results by the rules of MaskFormer.",
            name,
            " and ".join(own),
        )


class _Network(nn.Module):
    """Normalised, padded images (N, C, H', W') to class and mask logits, float32."""

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.sem_seg_head = model.sem_seg_head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.sem_seg_head(self.backbone(images))
        return outputs["pred_logits"].float(), outputs["pred_masks"].float()
