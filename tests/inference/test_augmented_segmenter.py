"""Test-time augmentation in the Python API."""

from pathlib import Path

import numpy as np
import pytest

import mask2former as m2f

AUGMENT = ["TEST.AUG.ENABLED", "True"]


@pytest.fixture(scope="module")
def tiny(tiny_config: Path) -> m2f.Segmenter:
    return m2f.load(tiny_config)


def test_one_view_is_no_augmentation(tiny: m2f.Segmenter, tiny_config: Path, photograph: np.ndarray) -> None:
    one = m2f.load(tiny_config, opts=[*AUGMENT, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False"])
    for task in ("panoptic", "instance", "semantic"):
        plain, augmented = (model.predict(photograph, task=task, threshold=0.0) for model in (tiny, one))
        assert augmented.to_coco() == plain.to_coco() != []


def test_several_views(tiny: m2f.Segmenter, tiny_config: Path, photograph: np.ndarray) -> None:
    several = m2f.load(tiny_config, opts=[*AUGMENT, "TEST.AUG.SCALES", "[0.8, 1.25]"])
    result = several.predict([photograph, photograph[:40]], task=("panoptic", "instance", "semantic"), batch_size=2)
    assert [r.panoptic.ids.shape for r in result] == [(90, 120), (40, 120)]
    scores = [model.predict(photograph, task="semantic").semantic.scores for model in (tiny, several)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < np.ptp(scores[0])


def test_models_without_queries_give_semantic_results(config_file: Path, picture: np.ndarray) -> None:
    options = [*AUGMENT, "TEST.AUG.SCALES", "[1.0, 2.0]"]
    plain, augmented = (m2f.load(config_file, opts=opts).predict(picture, task="semantic") for opts in ([], options))
    np.testing.assert_array_equal(augmented.semantic.labels, plain.semantic.labels)


def test_size_and_sizes_of_the_configuration(tiny_config: Path, photograph: np.ndarray) -> None:
    absolute = m2f.load(tiny_config, opts=AUGMENT)
    with pytest.raises(ValueError, match=r"size is 32, but test-time augmentation takes its sizes .*TEST\.AUG\.SCALES"):
        absolute.predict(photograph, size=32)
    relative = m2f.load(tiny_config, opts=[*AUGMENT, "TEST.AUG.SCALES", "[1.0]", "TEST.AUG.FLIP", "False"])
    plain = m2f.load(tiny_config).predict(photograph, size=32)
    assert relative.predict(photograph, size=32).to_coco() == plain.to_coco()
