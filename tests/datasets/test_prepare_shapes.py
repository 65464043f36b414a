import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mask2former.image_io import read_image, read_label_image


@pytest.fixture
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_shapes", repository / "datasets" / "prepare_shapes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pixel_has_a_class_and_things_have_instances(script: ModuleType) -> None:
    for seed in range(20):
        image, instances, classes = script.draw_scene(np.random.default_rng(seed))
        assert image.shape == (128, 128, 3)
        assert instances.shape == classes.shape == (128, 128)
        assert ((instances > 0) == (classes < 3)).all()
        for number in np.unique(instances[instances > 0]):
            assert len(np.unique(classes[instances == number])) == 1


def test_pictures_are_the_same_each_time_and_differ_between_splits(script: ModuleType, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        script.write_scene(tmp_path / folder / "train" / "images" / "0003.png")
    script.write_scene(tmp_path / "a" / "val" / "images" / "0003.png")
    first, again, other = (
        read_image(tmp_path / name / "images" / "0003.png", "RGB") for name in ("a/train", "b/train", "a/val")
    )
    assert (first == again).all()
    assert (first != other).any()
    assert read_label_image(tmp_path / "a" / "train" / "classes" / "0003.png").max() < len(script.CLASSES)
