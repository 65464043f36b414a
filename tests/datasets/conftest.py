"""Miniature trees, scripts run on them, and the catalogs pointed at them."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import (
    register_all_ade20k as register_ade20k_sem_seg,
)
from detectron2.data.datasets.builtin import (
    register_all_cityscapes,
    register_all_cityscapes_panoptic,
    register_all_coco,
    register_all_lvis,
)

from mask2former.data.datasets import (
    read_lvis_by_itself,
    register_all_ade20k,
    register_all_coco_panoptic,
    register_all_coco_stuff_10k,
    register_all_mapillary_vistas,
)

_REGISTER = (
    register_all_coco,
    register_all_lvis,
    register_all_cityscapes,
    register_all_cityscapes_panoptic,
    register_ade20k_sem_seg,
    register_all_coco_panoptic,
    register_all_coco_stuff_10k,
    register_all_ade20k,
    register_all_mapillary_vistas,
)
_PREFIXES = ("ade20k", "cityscapes", "coco_", "keypoints_coco", "lvis", "mapillary")


def _register_all(root: Path) -> None:
    for name in list(DatasetCatalog):
        if name.startswith(_PREFIXES):
            DatasetCatalog.remove(name)
    for name in MetadataCatalog.list():
        if name.startswith(_PREFIXES):
            MetadataCatalog.remove(name)
    for register in _REGISTER:
        register(str(root))
    read_lvis_by_itself()


@pytest.fixture
def catalogs() -> Iterator[Callable[[Path], None]]:
    """Registers all official data sets below a folder, until the test ends."""
    yield _register_all
    _register_all(Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser())


@pytest.fixture
def prepare(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script of ``datasets/`` in this process."""

    def run(script: str, root: Path, *arguments: str) -> None:
        path = repository / "datasets" / f"{script}.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--root", str(root), "--workers", "1", *arguments])
        runpy.run_path(str(path), run_name="__main__")

    return run
