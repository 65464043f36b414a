"""A model that is trained in a second, and data in every format."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.datasets import custom
from tests.tiny_model import CONFIG


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of one's own, and no data set of an earlier test."""
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    yield
    for name in ("own_train", "own_val"):
        custom._registered.pop(name, None)
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def tiny_base(tmp_path: Path) -> Path:
    """A configuration of the real model on a backbone of 80,000 parameters."""
    pytest.importorskip("timm")
    model = {
        **CONFIG["MODEL"],
        "BACKBONE": {"NAME": "TimmBackbone"},
        "TIMM": {"MODEL_NAME": "test_efficientnet", "NORM": "BN"},
        "WEIGHTS": "",
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, "MODEL": model, "DATASETS": {}}))
    return file
