"""Ground truth as pictures, of the toy data set: red dots and green bars on blue ground."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image

from mask2former.engine.browse import browse, draw_examples, for_data_sets
from mask2former.engine.setup import load_config
from mask2former.visualization import draw_semantic
from tests.small_disk import disk_of

Configure = Callable[..., CfgNode]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(error: Exception) -> None:
    raise error


def test_pictures_are_chosen_by_the_seed(
    toy_config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = toy_config()
    assert browse(cfg, tmp_path / "a", number=3, seed=1)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed[:-1]] == names(tmp_path / "a")
    assert printed[-1] == f"3 pictures -> {tmp_path / 'a'}/"
    browse(cfg, tmp_path / "b", number=3, seed=1)
    browse(cfg, tmp_path / "c", number=3, seed=2)
    assert names(tmp_path / "a") == names(tmp_path / "b") != names(tmp_path / "c")
    browse(cfg, tmp_path / "all", number=99, seed=1)
    assert names(tmp_path / "all") == [f"{i:06d}_{i + 1:03d}.jpg" for i in range(8)]
    for name in names(tmp_path / "a"):  # whatever else is drawn
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_classes_are_counted(toy_config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = toy_config(INPUT__DATASET_MAPPER_NAME="mask_former_panoptic")
    browse(cfg, tmp_path / "a", number=8, augment=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "000000_001.jpg: 24 x 32, 1 dot, 1 bar, 1 ground"
    assert lines[7] == "000007_008.jpg: 24 x 32, 1 ground"


def test_drawing_is_that_of_the_annotation(toy_config: Configure, toy_data: Path) -> None:
    ((name, drawing, _),) = list(draw_examples(toy_config(), 1, 0, False, fail))
    file = f"{name.partition('_')[2]}.png"
    image, classes = (np.asarray(Image.open(toy_data / f"{prefix}{file}")) for prefix in ("", "classes_"))
    np.testing.assert_array_equal(drawing, draw_semantic(image, classes, MetadataCatalog.get("toy")))


def test_augmentations_are_the_configured_ones(toy_config: Configure) -> None:
    cfg = toy_config(
        INPUT__DATASET_MAPPER_NAME="coco_panoptic_lsj", INPUT__IMAGE_SIZE=40, INPUT__RANDOM_FLIP="horizontal"
    )
    drawn = [drawing for _, drawing, _ in draw_examples(cfg, 8, 0, True, fail)]
    assert {drawing.shape for drawing in drawn} == {(40, 40, 3)}
    again = [drawing for _, drawing, _ in draw_examples(cfg, 8, 1, True, fail)]
    assert not all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_sheet(toy_config: Configure, tmp_path: Path) -> None:
    browse(toy_config(), tmp_path / "new" / "a", number=5, augment=False, sheet=True)
    assert Image.open(tmp_path / "new" / "a" / "sheet.jpg").size == (3 * (32 + 8) + 8, 2 * (24 + 8) + 8)


@pytest.mark.parametrize(("room", "file"), [(100, r"00000\d_00\d\.jpg"), (1500, r"sheet\.jpg")])
def test_a_full_disk(toy_config: Configure, tmp_path: Path, room: int, file: str) -> None:
    with disk_of(room), pytest.raises(OSError, match=rf"a/{file}: cannot be written \(File too large\)"):
        browse(toy_config(), tmp_path / "a", number=5, augment=False, sheet=True)
    assert all(Image.open(path).load() for path in (tmp_path / "a").iterdir())


def test_what_cannot_be_read_is_told_and_the_rest_is_drawn(
    toy_config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = toy_config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)  # all but pictures without ground
    assert not browse(cfg, tmp_path / "a", number=2)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("is annotated with class id 2, expected 0 to 1" in line for line in errors)


@pytest.mark.parametrize("number", [0, -1])
def test_no_picture(toy_config: Configure, tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match=f"--number is {number}, expected at least 1"):
        browse(toy_config(), tmp_path / "a", number=number)


def test_other_data_sets(toy_config: Configure) -> None:
    assert for_data_sets(toy_config(), ("coco_2017_val",)).DATASETS.TRAIN == ("coco_2017_val",)
    with pytest.raises(ValueError, match=r"no data set 'coco_2017_vall'; of \d+, the closest are coco_2017_val"):
        for_data_sets(toy_config(), ("coco_2017_vall",))
    with pytest.raises(ValueError, match="the configuration names no data set for this split"):
        for_data_sets(load_config(), ())
