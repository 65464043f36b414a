"""Your own data: what ``DATASETS.CUSTOM`` names, registered like any other data set."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .entry import parse_entry
from .own import CustomDataset

__all__ = ["register_custom_datasets"]

_registered: dict[str, CustomDataset] = {}


def register_custom_datasets(cfg: CfgNode) -> None:
    """Register every data set of ``DATASETS.CUSTOM``; ``datasets/README.md`` describes the entries.

    Nothing of the data is read but class names, and it need not be there before it is used. Calling it again is fine;
    an entry that has changed replaces the earlier one.

    Raises:
        ValueError: An entry is wrong, or its name is that of a data set from elsewhere.
    """
    for name, entry in cfg.DATASETS.CUSTOM.items():
        dataset = parse_entry(name, entry)
        if _registered.get(name) == dataset:
            continue
        if name in _registered:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        elif name in DatasetCatalog:
            raise ValueError(f"DATASETS.CUSTOM.{name}: a data set of this name exists already. Choose another name.")
        DatasetCatalog.register(name, _loader(name, dataset))
        MetadataCatalog.get(name).set(**dataset.metadata())
        _registered[name] = dataset


def _loader(name: str, dataset: CustomDataset) -> Callable[[], list[dict[str, Any]]]:
    def load() -> list[dict[str, Any]]:
        # The data may have come, or changed, since it was registered; metadata refuses to be set to something else.
        metadata = MetadataCatalog.get(name)
        for key, value in dataset.metadata().items():
            if metadata.get(key) != value:
                metadata.__dict__.pop(key, None)
                metadata.set(**{key: value})
        return dataset.load()

    return load
