"""Results from several views of an image: other sizes, and mirror images."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.modeling import MaskFormer
from mask2former.modeling.query_merging import QueryMerger

__all__ = ["SegmentorWithTTA", "SemanticSegmentorWithTTA"]


@dataclass(frozen=True)
class _View:
    """An input of the model, and whether its image is mirrored."""

    entry: dict[str, Any]
    flipped: bool


class SegmentorWithTTA(nn.Module):
    """A model with test-time augmentation: the same input and output, from several views of each image.

    The image is resized, so that its shorter edge has each of ``min_sizes``, and mirrored. Class scores (``sem_seg``)
    are averaged over the views. For panoptic segments and instances the queries are averaged, from the largest view on,
    as :class:`~mask2former.modeling.query_merging.QueryMerger` says, and post-processed once.

    Views are made of the image that the model gets without augmentation, as in the official release: a view that is
    larger shows no more detail.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        scales: Sequence[float] = (),
    ) -> None:
        """
        Args:
            model: a ``MaskFormer``; or any, a subclass with a forward of its own included, that gives ``sem_seg`` and
                nothing else.
            min_sizes: shorter edges of the views in pixels.
            max_size: the longer edge has at most so many pixels, and the shorter one then less.
            flip: mirror each of them, left and right, besides.
            scales: factors of both edges; given, ``min_sizes`` and ``max_size`` are not read.

        Raises:
            ValueError: there is no size or one is not above 0, or the model cuts images into tiles for segments.
        """
        super().__init__()
        if not (scales or min_sizes) or min(*scales, *min_sizes, max_size) <= 0:
            raise ValueError(
                f"TEST.AUG has MIN_SIZES {list(min_sizes)}, MAX_SIZE {max_size} and SCALES {list(scales)}; expected at "
                "least one size or scale, and all above 0."
            )
        self.model: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip
        self.scales = scales
        # What another forward makes of the queries, only its results show.
        is_plain = isinstance(self.model, MaskFormer) and type(self.model).forward is MaskFormer.forward
        self._merges_queries = is_plain and (self.model.panoptic_on or self.model.instance_on)
        if self._merges_queries and self.model.tiled_inference is not None:
            raise ValueError(
                "TEST.AUG merges the queries of whole views, but MODEL.MASK_FORMER.TEST.TILE_SIZE cuts images into "
                "tiles. Set TILE_SIZE 0 (leave tile= out), or turn PANOPTIC_ON and INSTANCE_ON off: class scores are "
                "merged with tiles."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Read ``TEST.AUG``."""
        aug = cfg.TEST.AUG
        return {
            "model": model,
            "min_sizes": aug.MIN_SIZES,
            "max_size": aug.MAX_SIZE,
            "flip": aug.FLIP,
            "scales": aug.SCALES,
        }

    def with_outputs(
        self, tasks: Collection[str], *, lazy_class_scores: bool = False, **options: Any
    ) -> "SegmentorWithTTA":
        """As ``MaskFormer.with_outputs``; class scores of several views are added up, so they are never lazy."""
        return self._of(self.model.with_outputs(tasks, **options))

    def with_tiles(self, tile_size: int, overlap: int | None = None) -> "SegmentorWithTTA":
        """As ``MaskFormer.with_tiles``; for semantic results alone, of which those of tiles are merged too."""
        return self._of(self.model.with_tiles(tile_size, overlap))

    def _of(self, model: nn.Module) -> "SegmentorWithTTA":
        return SegmentorWithTTA(
            model, min_sizes=self.min_sizes, max_size=self.max_size, flip=self.flip, scales=self.scales
        )

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segment images, one after the other; as ``MaskFormer.forward`` in inference."""
        segment = self._from_queries if self._merges_queries else self._from_class_scores
        return [segment(self._views(entry)) for entry in batched_inputs]

    def _views(self, entry: dict[str, Any]) -> Iterator[_View]:
        """The views of an image, the largest first, and each before its mirror image."""
        image: Tensor = entry["image"]
        height, width = image.shape[-2:]
        pixels = image.permute(1, 2, 0).cpu().numpy()
        for size in sorted(self._view_sizes(height, width), reverse=True):
            resized = T.ResizeTransform(height, width, *size).apply_image(pixels)
            for flipped in (False, True) if self.flip else (False,):
                view = (resized[:, ::-1] if flipped else resized).transpose(2, 0, 1)
                # Flips leave negative strides, and Pillow read-only memory; torch takes neither.
                tensor = torch.from_numpy(np.require(view, requirements=["C", "W"]))
                # The result has the size that it has without augmentation.
                yield _View({"height": height, "width": width, **entry, "image": tensor}, flipped)

    def _view_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        if self.scales:
            return [(max(round(height * scale), 1), max(round(width * scale), 1)) for scale in self.scales]
        get_size = T.ResizeShortestEdge.get_output_shape
        return [get_size(height, width, min_size, self.max_size) for min_size in self.min_sizes]

    def _from_class_scores(self, views: Iterator[_View]) -> dict[str, Any]:
        mean = _Mean()
        for view in views:
            (result,) = self.model([view.entry])
            if result.keys() != {"sem_seg"}:
                raise ValueError(
                    f"{type(self.model).__name__} gives {sorted(result)}, but TEST.AUG merges the class scores "
                    "(sem_seg) of any model and segments of MaskFormer only. Ask for semantic results alone."
                )
            mean.add(result["sem_seg"], view.flipped)
        return {"sem_seg": mean.result()}

    def _from_queries(self, views: Iterator[_View]) -> dict[str, Any]:
        model: MaskFormer = self.model
        tasks = {"panoptic": model.panoptic_on, "instance": model.instance_on}
        semantic = model.with_outputs({"semantic"})
        segments = model.with_outputs(
            {task for task, on in tasks.items() if on},
            instance_threshold=model.instance_threshold,
            panoptic_scores=model.panoptic_scores,
        )
        merger, mean = QueryMerger(), _Mean()
        for view in views:
            (prediction,) = model.predict_queries([view.entry])
            merger.add(prediction, flipped=view.flipped)
            if model.semantic_on:
                mean.add(semantic.postprocess(prediction)["sem_seg"], view.flipped)
        result = segments.postprocess(merger.result())
        return {"sem_seg": mean.result(), **result} if model.semantic_on else result


# The official release's name, where it is for semantic results alone.
SemanticSegmentorWithTTA = SegmentorWithTTA


class _Mean:
    """The mean of class scores (K, H, W), of which two at a time are in memory."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, scores: Tensor, flipped: bool) -> None:
        scores = scores.flip(-1) if flipped else scores
        self._total = scores if self._total is None else self._total.add_(scores)
        self._count += 1

    def result(self) -> Tensor:
        assert self._total is not None, "there is at least one view"
        return self._total.div_(self._count)
