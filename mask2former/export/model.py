"""Exported files in the place of a model: the same inputs, and the same results, as ``MaskFormer`` in inference."""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.class_metadata import metadata_from_json
from ..modeling.mask_former import MaskFormer
from ..modeling.postprocessing import QueryPrediction, masks_to_boxes
from .network import ExportedNetwork
from .runtime import ExportedModel

__all__ = ["ExportedMaskFormer", "ExportedResults", "model_of_file"]


def model_of_file(exported: ExportedModel) -> "ExportedMaskFormer | ExportedResults":
    """What takes images and gives results like a ``MaskFormer`` in evaluation mode."""
    if exported.info.postprocessing == "none":
        return ExportedMaskFormer(exported).eval().to(exported.device)
    return ExportedResults(exported)


class ExportedMaskFormer(MaskFormer):
    """A model whose network is a file with raw outputs; tiles and post-processing are those of any model."""

    def __init__(self, exported: ExportedModel) -> None:
        info = exported.info
        network = ExportedNetwork(exported, torch.tensor(info.pixel_mean), torch.tensor(info.pixel_std))
        super().__init__(
            backbone=nn.Identity(),
            sem_seg_head=network,
            criterion=None,
            num_queries=info.num_queries,
            object_mask_threshold=info.object_mask_threshold,
            overlap_threshold=info.overlap_threshold,
            metadata=metadata_from_json(info.metadata),
            size_divisibility=info.size_divisibility,
            sem_seg_postprocess_before_inference=info.resize_before_inference,
            pixel_mean=info.pixel_mean,
            pixel_std=info.pixel_std,
            semantic_on="semantic" in info.tasks,
            panoptic_on="panoptic" in info.tasks,
            instance_on="instance" in info.tasks,
            test_topk_per_image=info.max_instances,
            tile_size=info.tile_size,
            tile_overlap=info.tile_overlap,
            split_disconnected_things=info.split_disconnected_things,
            batch_by_size=True,
        )

    def predict_queries(self, batched_inputs: list[dict[str, Any]]) -> list[QueryPrediction]:
        """As ``MaskFormer.predict_queries``; the graph pads, so images of different sizes run one by one."""
        if len({entry["image"].shape for entry in batched_inputs}) > 1:
            return [prediction for entry in batched_inputs for prediction in self.predict_queries([entry])]
        images = torch.stack([entry["image"] for entry in batched_inputs])
        outputs = self.sem_seg_head.from_pixels(images.to(self.device))  # type: ignore[operator]
        return self._with_geometry(outputs, batched_inputs, self._padded_size(batched_inputs[0]))


class ExportedResults:
    """A file with post-processing inside. Its results have the size of the network's input, and are resized from there.

    Semantic scores are resized bilinearly; ids and masks take the nearest pixel.
    """

    def __init__(self, exported: ExportedModel) -> None:
        self.exported = exported
        self._things = set(exported.info.thing_classes)

    def with_outputs(
        self,
        tasks: Collection[str],
        *,
        object_mask_threshold: float | None = None,
        instance_threshold: float = 0.0,
        panoptic_scores: bool = False,
        lazy_class_scores: bool = False,
    ) -> "ExportedResults":
        """Itself, if it gives these tasks, by this threshold; scores are what the file computes.

        Raises:
            ValueError: it does not.
        """
        info = self.exported.info
        if set(tasks) != {info.postprocessing}:
            raise ValueError(
                f"task is {' and '.join(tasks)}, but {self.exported.path} has {info.postprocessing} post-processing "
                "inside and gives nothing else; export with --with-postprocessing none for all tasks."
            )
        threshold = info.object_mask_threshold if object_mask_threshold is None else object_mask_threshold
        if info.postprocessing == "panoptic" and threshold != info.object_mask_threshold:
            raise ValueError(
                f"threshold is {threshold}, but {self.exported.path} has panoptic post-processing with "
                f"{info.object_mask_threshold} inside; export with --with-postprocessing none to choose later."
            )
        return self

    def with_tiles(self, tile_size: int, overlap: int | None = None) -> "ExportedResults":
        """Itself, if no tiles are wanted.

        Raises:
            ValueError: they are.
        """
        if tile_size > 0:
            raise ValueError(
                f"tile is {tile_size}, but {self.exported.path} has post-processing inside, and segments of tiles are "
                "joined before it; export with --with-postprocessing none."
            )
        return self

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As ``MaskFormer.forward`` in inference."""
        return [self._segment(entry) for entry in batched_inputs]

    def _segment(self, entry: dict[str, Any]) -> dict[str, Any]:
        info, image = self.exported.info, entry["image"]
        outputs = self.exported(image[None].to(self.exported.device, getattr(torch, info.input_type)))
        one = {name: output[0] for name, output in outputs.items()}
        size = (entry.get("height", image.shape[-2]), entry.get("width", image.shape[-1]))
        if info.postprocessing == "semantic":
            scores = F.interpolate(one["sem_seg"][None], size, mode="bilinear", align_corners=False)[0]
            return {"sem_seg": scores}
        if info.postprocessing == "panoptic":
            return {"panoptic_seg": self._panoptic(one, size)}
        return {"instances": _instances(one, size)}

    def _panoptic(self, one: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, list[dict[str, Any]]]:
        ids = _nearest(one["panoptic_seg"], size)
        classes: dict[int, int] = {}
        scores: dict[int, float] = {}
        queries = (one[name].tolist() for name in ("segment_ids", "segment_classes", "segment_scores"))
        for segment_id, class_id, score in zip(*queries, strict=True):
            classes[segment_id] = class_id
            scores[segment_id] = max(score, scores.get(segment_id, 0.0))  # stuff: of its surest query
        present = [segment_id for segment_id in ids.unique().tolist() if segment_id]
        numbers = ids.new_zeros(max([*classes, 0]) + 1)  # resizing may have left a segment without a pixel
        numbers[present] = torch.arange(1, len(present) + 1, dtype=ids.dtype, device=ids.device)
        segments = [
            {
                "id": number,
                "isthing": classes[segment_id] in self._things,
                "category_id": classes[segment_id],
                "score": scores[segment_id],
            }
            for number, segment_id in enumerate(present, start=1)
        ]
        return numbers[ids.long()], segments


def _instances(one: dict[str, Tensor], size: tuple[int, int]) -> Instances:
    found = one["scores"] > 0  # what is no instance has the score 0
    masks = _nearest(one["masks"][found], size)
    result = Instances(size)
    result.pred_masks = masks
    result.pred_boxes = Boxes(masks_to_boxes(masks))
    result.scores = one["scores"][found]
    result.pred_classes = one["classes"][found]
    return result


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the last two dimensions without new values; exactly the same where the size is."""
    for dim, (wanted, length) in zip((-2, -1), zip(size, values.shape[-2:], strict=True), strict=True):
        index = ((torch.arange(wanted, device=values.device) + 0.5) * length / wanted).long()
        values = values.index_select(dim, index)
    return values
