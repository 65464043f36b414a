"""Does the configuration fit the data? Asked once, before a training or an evaluation starts."""

import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .dataset_mappers import dataset_mapper_class

__all__ = ["check_config_against_data", "check_registered", "largest_instance_count", "warn_of_other_classes"]

_LOGGER = logging.getLogger(__name__)


def largest_instance_count(dataset_dicts: Iterable[dict[str, Any]], things_only: bool = False) -> int:
    """The number of targets in the fullest image: annotations or segments that are not crowds; 0 if none are listed.

    Args:
        dataset_dicts: Images, in Detectron2's format.
        things_only: Leave stuff out.
    """
    return max((_count(dataset_dict, things_only) for dataset_dict in dataset_dicts), default=0)


def check_registered(names: Iterable[str]) -> None:
    """Check that there are data sets of these names.

    Raises:
        ValueError: One of them is not registered.
    """
    registered = DatasetCatalog.list()
    for name in names:
        if name not in registered:
            alike = ", ".join(get_close_matches(str(name), registered, n=5, cutoff=0))
            raise ValueError(f"there is no data set {name!r}; of {len(registered)}, the closest are {alike}.")


def warn_of_other_classes(cfg: CfgNode) -> None:
    """Say so if a data set of ``DATASETS.TEST`` has other classes than the first of ``DATASETS.TRAIN``."""
    key = dataset_mapper_class(cfg).class_names_key
    trained = cfg.DATASETS.TRAIN[0] if len(cfg.DATASETS.TRAIN) else ""
    known = MetadataCatalog.get(trained).get(key) if trained else None
    for name in cfg.DATASETS.TEST:
        names = MetadataCatalog.get(name).get(key)
        if known is None or names is None or list(names) == list(known):
            continue
        _LOGGER.warning(
            f"{name} has other classes ({_shown(names)}) than {trained} ({_shown(known)}), on which the model is "
            "trained. Classes are compared by their numbers, so figures mean something only where both have the same."
        )


def check_config_against_data(cfg: CfgNode, dataset_dicts: Iterable[dict[str, Any]], metadata: Any) -> None:
    """Compare the numbers of classes and queries with the data's, and the classes of several data sets.

    Args:
        cfg: The configuration.
        dataset_dicts: The training images.
        metadata: Detectron2's metadata of the training data.

    Raises:
        ValueError: ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` is not the data's number of classes, or the data sets of
            ``DATASETS.TRAIN`` have different classes.
    """
    key = dataset_mapper_class(cfg).class_names_key
    names = metadata.get(key)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if names is not None and len(names) != num_classes:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but {metadata.name} has {len(names)} classes for "
            f'INPUT.DATASET_MAPPER_NAME "{cfg.INPUT.DATASET_MAPPER_NAME}" ({_shown(names)}). '
            f"Set MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(names)}; a training that began with other classes cannot be "
            "resumed, but another can start from its weights."
        )
    for name in cfg.DATASETS.TRAIN:
        other = MetadataCatalog.get(name).get(key)
        if other != names:
            raise ValueError(
                f"{metadata.name} and {name} are trained on together, but their classes differ: {names} and {other}. "
                "Give them the same classes in the same order."
            )
    queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    largest = largest_instance_count(dataset_dicts, things_only=key == "thing_classes")
    if largest > queries and cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE == 0:
        _LOGGER.warning(
            f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries}, but one image of {metadata.name} has {largest} "
            f"segments: at most {queries} of them can be found at once. Set it to {largest} or more, or train "
            "on crops and set MODEL.MASK_FORMER.TEST.TILE_SIZE, which gives each tile of an image that many."
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _count(dataset_dict: dict[str, Any], things_only: bool) -> int:
    targets = dataset_dict.get("annotations", dataset_dict.get("segments_info", []))
    return sum(not target.get("iscrowd", 0) and (target.get("isthing", True) or not things_only) for target in targets)
