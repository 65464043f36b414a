"""Mappers whose targets are the segments of a COCO panoptic PNG."""

from typing import Any

import numpy as np

from ..label_map import LabelMap
from ..panoptic_png import read_segment_labels
from .base import LargeScaleJittering, MaskFormerDatasetMapper, build_transform_gen

__all__ = ["COCOPanopticNewBaselineDatasetMapper", "MaskFormerPanopticDatasetMapper", "build_transform_gen"]


class MaskFormerPanopticDatasetMapper(MaskFormerDatasetMapper):
    """Targets are the segments, things and stuff; crowds and unlabelled pixels are void."""

    def read_labels(self, dataset_dict: dict[str, Any], size: tuple[int, int]) -> LabelMap:
        segments = dataset_dict.get("segments_info", [])
        labels = [0] + [0 if segment.get("iscrowd", 0) else i for i, segment in enumerate(segments, 1)]
        classes = [segment["category_id"] for segment in segments]
        return LabelMap(read_segment_labels(dataset_dict, size, labels), np.array(classes, dtype=np.int64))


class COCOPanopticNewBaselineDatasetMapper(LargeScaleJittering, MaskFormerPanopticDatasetMapper):
    """The same with large-scale jittering."""
