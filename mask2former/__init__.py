"""Mask2Former: universal image segmentation as a Detectron2 extension.

One line loads a trained model, one segments a picture::

    import mask2former as m2f

    result = m2f.load("coco/panoptic/R50").predict("street.jpg")

Importing the package registers its components and data sets with Detectron2; ``add_maskformer2_config`` adds its keys
to a configuration::

    from detectron2.config import get_cfg
    from mask2former import add_maskformer2_config

    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file("configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
"""

from importlib import import_module  # noqa: I001
from typing import TYPE_CHECKING, Any

from . import _detectron2, _official_modules  # noqa: F401  before everything that imports Detectron2
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

if TYPE_CHECKING:
    from .api import Result, Segmenter, list_models, load
    from .engine import SemanticSegmentorWithTTA

__version__ = "0.1.0"

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "Result",
    "Segmenter",
    "SemanticSegmentorWithTTA",
    "add_maskformer2_config",
    "data",
    "list_models",
    "load",
    "modeling",
]

_LAZY = {
    "Result": "api",
    "Segmenter": "api",
    "SemanticSegmentorWithTTA": "engine",
    "list_models": "api",
    "load": "api",
}


def __getattr__(name: str) -> Any:
    """Import what a use of the model's parts does not need when it is asked for first."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    """What completion offers: also what nobody has asked for yet."""
    return sorted({*globals(), *_LAZY})
