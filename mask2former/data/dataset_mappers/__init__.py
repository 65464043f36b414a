"""Dataset mappers: one per task and augmentation recipe, from one base."""

from .base import MaskFormerDatasetMapper
from .build import DATASET_MAPPERS, build_dataset_mapper, dataset_mapper_class
from .instance import COCOInstanceNewBaselineDatasetMapper, MaskFormerInstanceDatasetMapper
from .panoptic import COCOPanopticNewBaselineDatasetMapper, MaskFormerPanopticDatasetMapper
from .semantic import COCOSemanticNewBaselineDatasetMapper, MaskFormerSemanticDatasetMapper

__all__ = [
    "DATASET_MAPPERS",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "COCOSemanticNewBaselineDatasetMapper",
    "MaskFormerDatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "build_dataset_mapper",
    "dataset_mapper_class",
]
