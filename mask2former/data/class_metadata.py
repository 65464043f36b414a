"""What is known of a data set's classes: where a configuration finds it, and as JSON beside a model."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

__all__ = ["metadata_from_json", "metadata_of_config", "metadata_to_json"]

_PLAIN_KEYS = ("name", "thing_classes", "stuff_classes", "thing_colors", "stuff_colors", "ignore_label")
_ID_KEYS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")


def metadata_of_config(cfg: CfgNode) -> Metadata:
    """Of the first data set, tested on or trained on, whose classes are known."""
    candidates = [MetadataCatalog.get(name) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)]
    known = [metadata for metadata in candidates if metadata.get("thing_classes") or metadata.get("stuff_classes")]
    return [*known, *candidates, Metadata()][0]


def metadata_to_json(metadata: Metadata) -> dict[str, Any]:
    """Names, colours and ids of classes, as far as they are known, in types that JSON has."""
    known = {key: metadata.get(key) for key in (*_PLAIN_KEYS, *_ID_KEYS)}
    described = {key: value for key, value in known.items() if value is not None}
    # JSON's keys are text, so ids become pairs.
    return {key: sorted(value.items()) if key in _ID_KEYS else value for key, value in described.items()}


def metadata_from_json(described: dict[str, Any]) -> Metadata:
    """What :func:`metadata_to_json` described; it is in no catalogue."""
    return Metadata(**{key: dict(value) if key in _ID_KEYS else value for key, value in described.items()})
