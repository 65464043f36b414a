"""A large image through the network tile by tile."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from ..postprocessing import MaskGeometry, semantic_inference, split_disconnected
from .merging import MaskPatch, Piece, merge_pieces
from .rendering import Canvas, instances_of_patches, panoptic_of_patches
from .tiles import Tile, plan_tiles

__all__ = ["TiledInference", "TiledPrediction"]


@dataclass(frozen=True)
class TiledPrediction:
    """What the network says about an image, put together from tiles.

    Attributes:
        patches: segments of the whole image.
        canvas: where they lie in the output.
        sem_seg: class scores (K, height, width) at the output's size; None if they were not asked for.
    """

    patches: list[MaskPatch]
    canvas: Canvas
    sem_seg: Tensor | None

    def panoptic(self, **rules: Any) -> tuple[Tensor, list[dict[str, Any]]]:
        """:func:`~mask2former.modeling.postprocessing.panoptic_inference` by its rules."""
        return panoptic_of_patches(self.patches, self.canvas, **rules)

    def instances(self, **rules: Any) -> Instances:
        """:func:`~mask2former.modeling.postprocessing.instance_inference` by its rules."""
        return instances_of_patches(self.patches, self.canvas, **rules)


class TiledInference:
    """Cut an image into overlapping tiles, run the network on each, and join what it finds.

    Segments are joined as :func:`~mask2former.modeling.tiling.merging.merge_pieces` says; class scores are averaged
    with weights that fall towards the tiles' inner edges.
    """

    def __init__(self, tile_size: int, overlap: int, size_divisibility: int, batch_size: int = 4) -> None:
        """
        Args:
            tile_size: side of a tile in pixels of the network's input.
            overlap: least overlap of neighbours in pixels; larger than most objects, at most half a tile.
            size_divisibility: tiles begin at multiples of this; the network's coarsest stride.
            batch_size: tiles in one run of the network.

        Raises:
            ValueError: if the sizes are not multiples of ``size_divisibility``, or the overlap is out of range.
        """
        self.tile_size = tile_size
        self.overlap = overlap
        self.stride = max(size_divisibility, 1)
        self.batch_size = batch_size
        plan_tiles((1, 1), tile_size, overlap, self.stride)  # says now what is wrong with the sizes

    def applies_to(self, image_size: tuple[int, int]) -> bool:
        """Whether an image of this (height, width) is larger than a tile."""
        return max(image_size) > self.tile_size

    def __call__(
        self,
        network: Callable[[Tensor], dict[str, Tensor]],
        image: Tensor,
        output_size: tuple[int, int],
        *,
        thing_classes: Collection[int],
        split_disconnected_things: bool = False,
        with_segments: bool = True,
        with_semantic: bool = True,
        least_score: float = 0.02,
    ) -> TiledPrediction:
        """Segment one image.

        Args:
            network: normalised images (N, C, tile_size, tile_size) to ``pred_logits`` (N, Q, K + 1) and ``pred_masks``
                (N, Q, h, w).
            image: normalised (C, H, W).
            output_size: (height, width) of the result.
            thing_classes: contiguous ids of countable classes; of any other class an image has one segment.
            split_disconnected_things: make each connected region of a thing's mask a segment of its own.
            with_segments: give segments.
            with_semantic: give class scores.
            least_score: a query takes part if its best class is at least this probable.
        """
        height, width = image.shape[-2:]
        tiles = plan_tiles((height, width), self.tile_size, self.overlap, self.stride)
        pieces: list[Piece] = []
        semantic = _SemanticBlend(image, tiles) if with_semantic else None
        mask_stride = 0
        for index, logits, masks in self._run(network, image, tiles):
            mask_stride = self.tile_size // masks.shape[-1]
            if with_segments:
                parts = (
                    split_disconnected(logits, masks, thing_classes) if split_disconnected_things else (logits, masks)
                )
                pieces += _candidates(index, *parts, least_score)
            if semantic is not None:
                semantic.add(tiles[index], logits, masks)
        tiles_of_masks = [tile.scaled(mask_stride) for tile in tiles]
        last = tiles_of_masks[-1]
        canvas = Canvas(
            grid_size=(last.top + last.height, last.left + last.width),
            image_size=(height, width),
            output_size=output_size,
            stride=mask_stride,
            device=image.device,
        )
        patches = merge_pieces(pieces, tiles_of_masks, thing_classes)
        return TiledPrediction(patches, canvas, None if semantic is None else semantic.result(output_size))

    def _run(
        self, network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, tiles: Sequence[Tile]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Index, class logits (Q, K + 1) and mask logits (Q, h, w) of each tile."""
        for start in range(0, len(tiles), self.batch_size):
            batch = [_cut(image, tile) for tile in tiles[start : start + self.batch_size]]
            outputs = network(torch.stack(batch))
            for offset, (logits, masks) in enumerate(zip(outputs["pred_logits"], outputs["pred_masks"], strict=True)):
                yield start + offset, logits.float(), masks.float()


class _SemanticBlend:
    """Class scores of tiles, averaged with the tiles' windows."""

    def __init__(self, image: Tensor, tiles: Sequence[Tile]) -> None:
        self._image_size = (image.shape[-2], image.shape[-1])
        self._grid = (tiles[-1].top + tiles[-1].height, tiles[-1].left + tiles[-1].width)
        self._scores: Tensor | None = None
        self._weight = torch.zeros(self._grid, device=image.device)

    def add(self, tile: Tile, logits: Tensor, masks: Tensor) -> None:
        size = (tile.height, tile.width)
        scores = semantic_inference(logits, masks, MaskGeometry(size, size, size))
        if self._scores is None:
            self._scores = scores.new_zeros((len(scores), *self._grid))
        window = tile.window(scores.device)
        rows, columns = tile.slices
        self._scores[:, rows, columns] += window * scores
        self._weight[tile.slices] += window

    def result(self, output_size: tuple[int, int]) -> Tensor:
        assert self._scores is not None, "there is at least one tile"
        geometry = MaskGeometry(self._grid, self._image_size, output_size)
        return geometry.padded_to_output(self._scores.div_(self._weight))


def _cut(image: Tensor, tile: Tile) -> Tensor:
    """The tile's pixels (C, height, width); beyond the image 0, the mean, as in a padded batch."""
    rows, columns = tile.slices
    cut = image[:, rows, columns]
    return F.pad(cut, (0, tile.width - cut.shape[-1], 0, tile.height - cut.shape[-2]))


def _candidates(index: int, logits: Tensor, masks: Tensor, least_score: float) -> list[Piece]:
    probabilities = logits.softmax(-1)
    found = (probabilities[:, :-1].amax(-1) >= least_score) & (masks.flatten(1).amax(-1) > 0)
    return [Piece(index, probabilities[query], masks[query].clone()) for query in found.nonzero().flatten().tolist()]
