"""ADE20K's scripts on a miniature tree, against loops over the files."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from mask2former.data.datasets.tables import read_table
from tests.datasets.trees import save, write_ade20k, write_ade20k_full

INSTANCE_TO_SEMANTIC = [entry["id"] for entry in read_table("ade20k_instance")]


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    write_ade20k(tmp_path)
    return tmp_path / "ADEChallengeData2016"


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_semantic_maps(ade20k, prepare):
    prepare("prepare_ade20k_sem_seg", ade20k.parent)
    for split in ("training", "validation"):
        sources = sorted((ade20k / "annotations" / split).iterdir())
        assert len(sources) == 2
        for source in sources:
            image = Image.open(ade20k / "annotations_detectron2" / split / source.name)
            assert image.mode == "L"
            before, after = read(source), np.asarray(image)
            np.testing.assert_array_equal(after[before > 0], before[before > 0] - 1)
            assert (after[before == 0] == 255).all()


def test_finished_maps_are_not_made_again(ade20k, prepare):
    prepare("prepare_ade20k_sem_seg", ade20k.parent)
    first, second = sorted((ade20k / "annotations_detectron2/training").iterdir())
    first.write_text("kept")
    second.unlink()
    prepare("prepare_ade20k_sem_seg", ade20k.parent)
    assert first.read_text() == "kept"
    assert second.is_file()
    prepare("prepare_ade20k_sem_seg", ade20k.parent, "--overwrite")
    assert Image.open(first).size == (64, 48)


def test_a_failed_map_leaves_nothing(ade20k, prepare):
    save(ade20k / "annotations/training/ADE_train_00000002.png", np.full((48, 64), 151, dtype=np.uint8))
    with pytest.raises(SystemExit, match=r"ADE_train_00000002.png: has value 151, expected 0 to 150. Is it of"):
        prepare("prepare_ade20k_sem_seg", ade20k.parent)
    made = [path.name for path in (ade20k / "annotations_detectron2/training").iterdir()]
    assert made == ["ADE_train_00000001.png"]


def test_a_missing_split_is_left_out(ade20k, prepare, capsys):
    (ade20k / "annotations/validation").rename(ade20k / "elsewhere")
    prepare("prepare_ade20k_sem_seg", ade20k.parent)
    assert "Leaving out validation, for there is no" in capsys.readouterr().out
    assert (ade20k / "annotations_detectron2/training").is_dir()


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("prepare_ade20k_sem_seg", "ADEChallengeData2016/annotations/training"),
        ("prepare_ade20k_ins_seg", "ADEChallengeData2016/annotations_instance/training"),
        ("prepare_ade20k_pan_seg", "ADEChallengeData2016/annotations_instance/validation"),
        ("prepare_ade20k_full_sem_seg", "ADE20K_2021_17_01/images/ADE/training"),
    ],
)
def test_nothing_there_is_an_error(script, missing, tmp_path, prepare):
    with pytest.raises(SystemExit, match=f"not found: .*{missing}.* Set DETECTRON2_DATASETS"):
        prepare(script, tmp_path)


def test_instances(ade20k, prepare):
    prepare("prepare_ade20k_ins_seg", ade20k.parent)
    for split, name in (("training", "train"), ("validation", "val")):
        content = json.loads((ade20k / f"ade20k_instance_{name}.json").read_text())
        assert [(c["id"], c["name"]) for c in content["categories"]] == [
            (c["id"], c["name"]) for c in read_table("ade20k_instance")
        ]
        assert [image["id"] for image in content["images"]] == [f"ADE_{name}_0000000{i}" for i in (1, 2)]
        assert [annotation["id"] for annotation in content["annotations"]] == list(range(1, 7))
        found = {}
        for annotation in content["annotations"]:
            mask = mask_util.decode(annotation["segmentation"])
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            assert annotation["bbox"] == [min(columns), min(rows), np.ptp(columns) + 1, np.ptp(rows) + 1]
            found[annotation["image_id"], annotation["category_id"], mask.tobytes()] = annotation["iscrowd"]
        expected = {}
        for image in content["images"]:
            red, green, _ = np.moveaxis(read(ade20k / "annotations_instance" / split / f"{image['id']}.png"), 2, 0)
            for number in set(green.ravel().tolist()) - {0}:
                mask = (green == number).astype(np.uint8)
                category = INSTANCE_TO_SEMANTIC[red[green == number][0] - 1]
                expected[image["id"], category, mask.tobytes()] = 0
        assert found == expected


def test_panoptic(ade20k, prepare):
    prepare("prepare_ade20k_pan_seg", ade20k.parent)
    content = json.loads((ade20k / "ade20k_panoptic_val.json").read_text())
    assert content["categories"] == read_table("ade20k")
    isthing = {category["id"]: category["isthing"] for category in content["categories"]}
    assert [image["file_name"] for image in content["images"]] == [f"ADE_val_0000000{i}.jpg" for i in (1, 2)]
    for annotation in content["annotations"]:
        ids = read(ade20k / "ade20k_panoptic_val" / annotation["file_name"]) @ [1, 256, 65536]
        classes = read(ade20k / "annotations/validation" / annotation["file_name"]) - 1
        red, green, _ = np.moveaxis(read(ade20k / "annotations_instance/validation" / annotation["file_name"]), 2, 0)
        by_id = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert len(by_id) == 5  # wall, floor, bed and two people
        assert set(np.unique(ids)) == {0, *by_id}
        for pixel in np.ndindex(ids.shape):
            if green[pixel]:
                assert by_id[ids[pixel]]["category_id"] == INSTANCE_TO_SEMANTIC[red[pixel] - 1]
                assert (ids[green == green[pixel]] == ids[pixel]).all()
            elif classes[pixel] >= 0 and not isthing[classes[pixel]]:
                assert by_id[ids[pixel]]["category_id"] == classes[pixel]
            else:
                assert ids[pixel] == 0
        for segment in by_id.values():
            # Of stuff, the area and the box count what things hide.
            mask = ids == segment["id"] if isthing[segment["category_id"]] else classes == segment["category_id"]
            rows, columns = np.nonzero(mask)
            assert segment["area"] == len(rows)
            assert segment["bbox"] == [min(columns), min(rows), np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.parametrize(("colour", "found"), [((101, 9, 0), "101"), ((0, 9, 0), "0")])
def test_an_instance_of_no_class_is_an_error(ade20k, prepare, colour, found):
    path = ade20k / "annotations_instance/training/ADE_train_00000001.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = colour
    save(path, pixels)
    with pytest.raises(SystemExit, match=rf"instance 9 has the class {found} \(red\), expected one of 1 to 100"):
        prepare("prepare_ade20k_ins_seg", ade20k.parent)
    assert not (ade20k / "ade20k_instance_train.json").exists()


def test_a_second_run_writes_the_same(ade20k, prepare):
    """The colours of instances are drawn, but not anew."""
    prepare("prepare_ade20k_pan_seg", ade20k.parent)
    expected = {path: path.read_bytes() for path in ade20k.rglob("*") if path.is_file()}
    prepare("prepare_ade20k_pan_seg", ade20k.parent, "--overwrite")
    assert {path: path.read_bytes() for path in ade20k.rglob("*") if path.is_file()} == expected


def test_full(tmp_path, prepare):
    write_ade20k_full(tmp_path)
    prepare("prepare_ade20k_full_sem_seg", tmp_path)
    root = tmp_path / "ADE20K_2021_17_01"
    class_of = {entry["id"]: i for i, entry in enumerate(read_table("ade20k_full"))}
    for split, name in (("training", "train"), ("validation", "val")):
        images = sorted((root / "images_detectron2" / split).iterdir())
        assert [path.name for path in images] == [f"ADE_{name}_0000000{i}.jpg" for i in (1, 2)]
        for path in images:
            image = Image.open(root / "annotations_detectron2" / split / f"{path.stem}.tif")
            assert image.size == Image.open(path).size
            assert image.mode == "I;16"
    small = root / "images/ADE/training/urban/street/ADE_train_00000001_seg.png"
    coded, classes = read(small), read(root / "annotations_detectron2/training/ADE_train_00000001.tif")
    for pixel in np.ndindex(classes.shape):
        red, green, _ = coded[pixel]
        assert classes[pixel] == class_of.get(red // 10 * 256 + green, 65535)
    assert set(np.unique(classes)) == {0, 20, 32, 65535}
    large = read(root / "annotations_detectron2/training/ADE_train_00000002.tif")
    assert large.shape == (round(600 / 530 * 512), 512)
    assert set(np.unique(large)) == {0, 20, 32, 65535}
