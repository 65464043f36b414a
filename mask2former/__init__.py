"""Mask2Former: universal image segmentation as a Detectron2 extension.

Importing the package registers its components and data sets with Detectron2; ``add_maskformer2_config`` adds its keys
to a configuration::

    from detectron2.config import get_cfg
    from mask2former import add_maskformer2_config

    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file("configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
"""

from . import _detectron2  # noqa: F401, I001  before everything that imports Detectron2
from . import data, modeling
from .config import add_maskformer2_config
from .data.dataset_mappers import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from .evaluation import InstanceSegEvaluator
from .modeling import MaskFormer

__version__ = "0.1.0"

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "add_maskformer2_config",
    "data",
    "modeling",
]
