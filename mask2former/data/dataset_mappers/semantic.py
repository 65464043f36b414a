"""Mappers whose targets are the classes of a semantic map."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..augmentation import build_lsj_recipe
from ..image_io import read_label_image
from ..label_map import LabelMap, replace_labels
from ..panoptic_png import check_label_size
from .base import MaskFormerDatasetMapper

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
        labels = np.arange(1, int(classes.max(initial=0)) + 2)
        labels[self.ignore_label : self.ignore_label + 1] = 0
        return LabelMap(replace_labels(classes, labels), np.arange(labels.max()))

    def more_outputs(self, labels: LabelMap) -> dict[str, np.ndarray]:
        classes = labels.labels.astype(np.int64) - 1  # as read_labels numbers them
        return {"sem_seg": np.where(classes < 0, self.ignore_label, classes)}


class COCOSemanticNewBaselineDatasetMapper(MaskFormerSemanticDatasetMapper):
    """The same with large-scale jittering."""

    @classmethod
    def build_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        return build_lsj_recipe(cfg)
