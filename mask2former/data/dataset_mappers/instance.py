"""Mappers whose targets are the instances of things, which may overlap."""

from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T

from ..annotation_masks import Part, draw_annotation
from ..label_map import LabelMap, move_labels
from ..panoptic_png import read_segment_labels
from .base import LargeScaleJittering, MaskFormerDatasetMapper, build_transform_gen

__all__ = ["COCOInstanceNewBaselineDatasetMapper", "MaskFormerInstanceDatasetMapper", "build_transform_gen"]


class MaskFormerInstanceDatasetMapper(MaskFormerDatasetMapper):
    """Targets are the instances; crowds are void.

    They come from "annotations" (polygons, RLE or bitmaps) or, in a panoptic data set, from the things of its PNGs.
    Pixels of no instance are background, not void.
    """

    class_names_key = "thing_classes"

    def read_labels(self, dataset_dict: dict[str, Any], size: tuple[int, int]) -> LabelMap:
        if "annotations" in dataset_dict:
            return _background_without_crowds(dataset_dict, size)
        return _things(dataset_dict, size)

    def read_targets(
        self, dataset_dict: dict[str, Any], labels: LabelMap, size: tuple[int, int], transforms: T.TransformList
    ) -> tuple[np.ndarray, torch.Tensor]:
        if "annotations" not in dataset_dict:
            return labels.targets()
        new_size = labels.labels.shape[0], labels.labels.shape[1]
        # Nothing is drawn into padding: the part of a polygon that a crop has cut off would show again there.
        inside = move_labels(transforms, np.ones(size, dtype=np.uint8)).astype(bool)
        classes, parts = [], []
        for number, annotation in enumerate(dataset_dict["annotations"]):
            if annotation.get("iscrowd", 0):
                continue
            part, place = _draw(dataset_dict, number, size, transforms, new_size)
            part &= inside[place]
            if part.any():
                classes.append(annotation["category_id"])
                parts.append((part, place))
        masks = np.zeros((len(parts), *new_size), dtype=bool)
        for mask, (part, place) in zip(masks, parts, strict=True):
            mask[place] = part
        return np.array(classes, dtype=np.int64), torch.from_numpy(masks)


class COCOInstanceNewBaselineDatasetMapper(LargeScaleJittering, MaskFormerInstanceDatasetMapper):
    """The same with large-scale jittering."""


def _background_without_crowds(dataset_dict: dict[str, Any], size: tuple[int, int]) -> LabelMap:
    """One segment of no class; instances, which may overlap, are drawn over it after the augmentations."""
    labels = np.ones(size, dtype=np.uint8)
    for number, annotation in enumerate(dataset_dict["annotations"]):
        if annotation.get("iscrowd", 0):
            part, place = _draw(dataset_dict, number, size, T.TransformList([]), size)
            labels[place][part] = 0
    return LabelMap(labels, np.array([LabelMap.NO_CLASS]))


def _things(dataset_dict: dict[str, Any], size: tuple[int, int]) -> LabelMap:
    """The things of a panoptic PNG, and one segment of no class for everything else but crowds."""
    segments = dataset_dict.get("segments_info", [])
    background = len(segments) + 1
    labels = [background]
    for i, segment in enumerate(segments, 1):
        if not segment["isthing"]:
            labels.append(background)
        else:
            labels.append(0 if segment.get("iscrowd", 0) else i)
    classes = [segment["category_id"] for segment in segments] + [LabelMap.NO_CLASS]
    return LabelMap(read_segment_labels(dataset_dict, size, labels), np.array(classes, dtype=np.int64))


def _draw(
    dataset_dict: dict[str, Any],
    number: int,
    size: tuple[int, int],
    transforms: T.TransformList,
    new_size: tuple[int, int],
) -> Part:
    try:
        return draw_annotation(dataset_dict["annotations"][number].get("segmentation"), size, transforms, new_size)
    except ValueError as error:
        raise ValueError(
            f"{dataset_dict['file_name']}: annotation {number} of the image: {error}. Correct it or remove it."
        ) from error
