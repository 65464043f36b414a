"""Mappers whose targets are the classes of a semantic map."""

from typing import Any

import numpy as np

from mask2former.image_io import read_label_image

from ..label_map import LabelMap, replace_labels
from ..panoptic_png import check_label_size
from .base import LargeScaleJittering, MaskFormerDatasetMapper

__all__ = ["COCOSemanticNewBaselineDatasetMapper", "MaskFormerSemanticDatasetMapper"]


class MaskFormerSemanticDatasetMapper(MaskFormerDatasetMapper):
    """Every class that is present is one target; the ignore label is void.

    The example also has "sem_seg" (H, W) int64, with the ignore label.
    """

    def read_labels(self, dataset_dict: dict[str, Any], size: tuple[int, int]) -> LabelMap:
        if "sem_seg_file_name" not in dataset_dict:
            raise ValueError(
                f"{dataset_dict['file_name']}: has no semantic annotation (sem_seg_file_name). "
                "Use a data set with semantic maps, or the mapper of another task (INPUT.DATASET_MAPPER_NAME)."
            )
        path = dataset_dict["sem_seg_file_name"]
        classes = read_label_image(path, bytes_stay=True)
        check_label_size(path, classes, size)
        labels = self._number(classes)
        count = int(labels.max(initial=0))
        if count > 65535:  # which move_labels could not move
            raise ValueError(
                f"{path}: has class id {count - 1}, expected 65534 at most, or the value of unlabelled pixels "
                f"({self.ignore_label}). Set that value right."
            )
        return LabelMap(labels, np.arange(count))

    def _number(self, classes: np.ndarray) -> np.ndarray:
        """Classes plus 1, and 0 for the ignore label."""
        if classes.dtype != np.uint8:
            return np.where(classes == self.ignore_label, 0, classes + 1)
        return replace_labels(classes, self._number(np.arange(int(classes.max(initial=0)) + 1)))

    def more_outputs(self, labels: LabelMap) -> dict[str, np.ndarray]:
        classes = labels.labels.astype(np.int64) - 1  # as read_labels numbers them
        return {"sem_seg": np.where(classes < 0, self.ignore_label, classes)}


class COCOSemanticNewBaselineDatasetMapper(LargeScaleJittering, MaskFormerSemanticDatasetMapper):
    """The same with large-scale jittering."""
