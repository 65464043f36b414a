"""Dataset mappers by their official names."""

from detectron2.config import CfgNode

from .base import MaskFormerDatasetMapper
from .instance import COCOInstanceNewBaselineDatasetMapper, MaskFormerInstanceDatasetMapper
from .panoptic import COCOPanopticNewBaselineDatasetMapper, MaskFormerPanopticDatasetMapper
from .semantic import COCOSemanticNewBaselineDatasetMapper, MaskFormerSemanticDatasetMapper

__all__ = ["DATASET_MAPPERS", "build_dataset_mapper", "dataset_mapper_class"]

DATASET_MAPPERS: dict[str, type[MaskFormerDatasetMapper]] = {
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "coco_panoptic_lsj": COCOPanopticNewBaselineDatasetMapper,
    "coco_instance_lsj": COCOInstanceNewBaselineDatasetMapper,
    "coco_semantic_lsj": COCOSemanticNewBaselineDatasetMapper,
}


def dataset_mapper_class(cfg: CfgNode) -> type[MaskFormerDatasetMapper]:
    """The class that ``INPUT.DATASET_MAPPER_NAME`` names."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in DATASET_MAPPERS:
        raise ValueError(f'INPUT.DATASET_MAPPER_NAME is "{name}", expected one of {", ".join(DATASET_MAPPERS)}.')
    return DATASET_MAPPERS[name]


def build_dataset_mapper(cfg: CfgNode, is_train: bool = True) -> MaskFormerDatasetMapper:
    """The mapper that ``INPUT.DATASET_MAPPER_NAME`` names; at test time all of them only read and resize."""
    return dataset_mapper_class(cfg)(cfg, is_train)
