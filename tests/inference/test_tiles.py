"""Large pictures in tiles, through the Python API and the command line."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

import mask2former as m2f
from mask2former import cli

TASKS = ("panoptic", "instance", "semantic")
QUERIES = 30


@pytest.fixture
def tiny(tiny_config: Path) -> m2f.Segmenter:
    return m2f.load(tiny_config)


def _assert_equal(found: m2f.Result, expected: m2f.Result) -> None:
    np.testing.assert_array_equal(found.panoptic.ids, expected.panoptic.ids)
    assert found.panoptic.segments == expected.panoptic.segments
    np.testing.assert_array_equal(found.instances.masks, expected.instances.masks)
    np.testing.assert_array_equal(found.instances.scores, expected.instances.scores)
    np.testing.assert_array_equal(found.semantic.scores, expected.semantic.scores)


@pytest.mark.parametrize(("overlap", "key"), [(None, 32), (32, 32), (64, 64)])
def test_tile_is_the_configuration_s_key(
    tiny_config: Path, tiny: m2f.Segmenter, photograph: np.ndarray, overlap: int | None, key: int
) -> None:
    test = "MODEL.MASK_FORMER.TEST."
    by_key = m2f.load(tiny_config, opts=[f"{test}TILE_SIZE", "128", f"{test}TILE_OVERLAP", str(key)])
    options: dict[str, Any] = {"task": TASKS, "threshold": 0.0, "size": 160}
    expected = by_key.predict(photograph, **options)
    _assert_equal(tiny.predict(photograph, tile=128, tile_overlap=overlap, **options), expected)
    (streamed,) = tiny.stream([photograph], tile=128, tile_overlap=overlap, **options)
    _assert_equal(streamed, expected)
    # And the key can be turned off, for one call.
    whole = tiny.predict(photograph, **options)
    _assert_equal(by_key.predict(photograph, tile=0, **options), whole)
    assert np.abs(whole.semantic.scores - expected.semantic.scores).max() > 1e-4, "tiles see less, and that shows"


def test_pictures_that_fit_into_a_tile_are_not_cut(tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
    options: dict[str, Any] = {"task": TASKS, "threshold": 0.0}
    _assert_equal(tiny.predict(photograph, tile=128, **options), tiny.predict(photograph, **options))


def test_what_tiles_agree_on_is_exact(
    tiny: m2f.Segmenter, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def constant(images: Tensor) -> dict[str, Tensor]:
        sizes.append(tuple(images.shape[-2:]))
        masks = torch.full((len(images), 1, images.shape[-2] // 4, images.shape[-1] // 4), 1.25)
        return {"pred_logits": torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(len(images), 1, 4), "pred_masks": masks}

    monkeypatch.setattr(tiny.model, "run_network", constant)
    whole, tiled = (tiny.predict(photograph, task="semantic", size=150, tile=tile) for tile in (None, 64))
    assert sizes == [(160, 224), *[(64, 64)] * (len(sizes) - 1)]
    np.testing.assert_allclose(tiled.semantic.scores, whole.semantic.scores, rtol=1e-6)
    assert np.ptp(tiled.semantic.scores[0]) < 1e-6


def _find_bright_squares(images: Tensor) -> dict[str, Tensor]:
    """A perfect network: a query of class 0 for each bright region, and one of class 2 for the rest."""
    cells = F.avg_pool2d(images.mean(1), 4) > 0
    logits = torch.full((len(images), QUERIES, 4), -9.0)
    logits[:, :, 3] = 9
    masks = torch.full((len(images), QUERIES, *cells.shape[1:]), -8.0)
    for image, bright in enumerate(cells):
        regions, count = ndimage.label(bright.numpy())
        for region in range(1, count + 1):
            logits[image, region - 1] = torch.tensor([6.0, -6, -6, -6])
            masks[image, region - 1][torch.from_numpy(regions == region)] = 8
        logits[image, -1] = torch.tensor([-6.0, -6, 6, -6])
        masks[image, -1][~bright] = 8
    return {"pred_logits": logits, "pred_masks": masks}


def test_objects_across_seams_are_found_once(tiny: m2f.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((160, 224, 3), np.uint8)
    corners = [(4, 40), (28, 120), (56, 56), (100, 100), (84, 180), (132, 20)]
    for top, left in corners:
        picture[top : top + 24, left : left + 24] = 255
    monkeypatch.setattr(tiny.model, "run_network", _find_bright_squares)
    result = tiny.predict(picture, task=("panoptic", "instance"), size=0, tile=64)
    assert [segment.name for segment in result.panoptic.segments].count("cat") == len(corners)
    found = {tuple(box[[1, 0]].round().astype(int)) for box in result.instances.boxes}
    assert all(min(abs(a - c) + abs(b - d) for c, d in found) <= 2 for a, b in corners), found
    assert len(result.instances) == len(corners)
    truth = picture[..., 0] > 0
    assert (truth != np.isin(result.panoptic.ids, [s.id for s in result.panoptic.segments if s.isthing])).mean() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, r"tiles of 100 pixels that overlap by 32: both must be multiples of 32.*tile and tile_overlap"),
        ({"tile": 64, "tile_overlap": 64}, "tiles of 64 pixels that overlap by 64.*at most half a tile"),
        ({"tile": -64}, "tile is -64, expected the side of a tile in pixels, or 0 for none"),
        ({"tile_overlap": 32}, "tile_overlap is 32, but tile is None; give the side of a tile too"),
    ],
)
def test_tiles_that_do_not_fit(
    tiny: m2f.Segmenter, photograph: np.ndarray, options: dict[str, int], message: str
) -> None:
    for refuse in (tiny.predict, tiny.stream):
        with pytest.raises(ValueError, match=message):
            refuse(photograph, **options)
    with pytest.raises(ValueError, match=message):
        tiny.check_options(**options)


def test_several_views_and_tiles(tiny_config: Path, photograph: np.ndarray) -> None:
    augmented = m2f.load(tiny_config, opts=["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[1.0, 2.0]"])
    tiled, whole = (augmented.predict(photograph, task="semantic", tile=tile).semantic for tile in (64, None))
    assert tiled.scores.shape == whole.scores.shape
    assert np.abs(tiled.scores - whole.scores).max() > 1e-4
    with pytest.raises(ValueError, match=r"TEST\.AUG merges the queries of whole views.*leave tile= out"):
        augmented.predict(photograph, task="panoptic", tile=64)


def test_command_line(tiny: m2f.Segmenter, tiny_config: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), photograph)
    words = ["predict", str(picture), "--model", str(tiny_config), "--output", str(tmp_path / "out")]
    options = ["--threshold", "0", "--size", "160", "--tile", "128", "--tile-overlap", "64"]
    assert cli.main([*words, *options]) == 0
    expected = tiny.predict(picture, threshold=0.0, size=160, tile=128, tile_overlap=64)
    segments = json.loads((tmp_path / "out" / "a.json").read_text())["segments"]
    assert [s["area"] for s in segments] == [s.area for s in expected.panoptic.segments]
