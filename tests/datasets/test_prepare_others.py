"""The scripts of COCO, COCO-Stuff, Cityscapes and Mapillary Vistas on miniature trees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from mask2former.data.datasets.tables import read_table
from tests.datasets import trees


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_coco_semantic_maps_from_the_command_line(tmp_path, repository, catalogs):
    """The command as people give it, with two processes, and the official name that it is for."""
    trees.write_coco(tmp_path)
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "PYTHONPATH": str(repository)}
    script = repository / "datasets/prepare_coco_semantic_annos_from_panoptic_annos.py"
    command = [sys.executable, str(script), "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    catalogs(tmp_path)
    maps = [record["sem_seg_file_name"] for record in DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")]
    assert len(maps) == 2
    contiguous = {category["id"]: i for i, category in enumerate(COCO_CATEGORIES)}
    for split in ("train2017", "val2017"):
        content = json.loads((tmp_path / f"coco/annotations/panoptic_{split}.json").read_text())
        for annotation in content["annotations"]:
            path = tmp_path / f"coco/panoptic_semseg_{split}" / annotation["file_name"]
            assert (str(path) in maps) == (split == "val2017")
            ids = read(tmp_path / f"coco/panoptic_{split}" / annotation["file_name"]) @ [1, 256, 65536]
            expected = np.full(ids.shape, 255)
            for segment in annotation["segments_info"]:
                expected[ids == segment["id"]] = contiguous[segment["category_id"]]
            np.testing.assert_array_equal(read(path), expected)


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("prepare_coco_semantic_annos_from_panoptic_annos", "coco/panoptic_train2017"),
        ("prepare_coco_stuff_10k_v1.0_sem_seg", "coco/coco_stuff_10k/imageLists/test.txt"),
        ("prepare_cityscapes", "cityscapes/gtFine/train"),
        ("prepare_mapillary_vistas_ins_seg", "mapillary_vistas/validation/v2.0/panoptic/panoptic_2020.json"),
    ],
)
def test_nothing_there_is_an_error(script, missing, tmp_path, prepare):
    with pytest.raises(SystemExit, match=f"not found: .*{missing}.* Set DETECTRON2_DATASETS"):
        prepare(script, tmp_path)


CLASS_OF_COCO_ID = {0: 255} | {entry["id"]: i for i, entry in enumerate(read_table("coco_stuff"))}


def check_coco_stuff(root: Path) -> None:
    for split, numbers in (("train", (77, 81)), ("test", (9, 25))):
        for number in numbers:
            name = f"COCO_train2014_{number:012d}"
            classes = read(root / "annotations_detectron2" / split / f"{name}.png")
            expected = np.vectorize(CLASS_OF_COCO_ID.get)(trees.coco_stuff_ids(number))
            np.testing.assert_array_equal(classes, expected)
            copy = root / "images_detectron2" / split / f"{name}.jpg"
            assert copy.read_bytes() == (root / "images" / f"{name}.jpg").read_bytes()
        assert len(list((root / "images_detectron2" / split).iterdir())) == 2


def test_coco_stuff_of_version_1_1(tmp_path, prepare):
    trees.write_coco_stuff(tmp_path)
    prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)
    check_coco_stuff(tmp_path / "coco/coco_stuff_10k")


def test_coco_stuff_without_links(tmp_path, prepare, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    trees.write_coco_stuff(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)
    check_coco_stuff(tmp_path / "coco/coco_stuff_10k")


def write_version_1_0(folder: Path, h5py) -> None:
    """MATLAB 7.3: HDF5 behind a header of 512 bytes; arrays are stored column by column; 1 is none, k + 2 class k."""
    for number in (77, 81, 9, 25):
        classes = np.vectorize(CLASS_OF_COCO_ID.get)(trees.coco_stuff_ids(number))
        values = np.where(classes == 255, 1, classes + 2).astype(np.uint8)
        path = folder / f"COCO_train2014_{number:012d}.mat"
        path.unlink()
        with h5py.File(path, "w", userblock_size=512) as file:
            file["S"] = values.T
        with open(path, "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def test_coco_stuff_of_version_1_0(tmp_path, prepare):
    h5py = pytest.importorskip("h5py")
    trees.write_coco_stuff(tmp_path)
    root = tmp_path / "coco/coco_stuff_10k"
    write_version_1_0(root / "annotations", h5py)
    prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)
    check_coco_stuff(root)


def test_coco_stuff_of_version_1_0_without_h5py(tmp_path, prepare, monkeypatch):
    trees.write_coco_stuff(tmp_path)
    path = tmp_path / "coco/coco_stuff_10k/annotations/COCO_train2014_000000000077.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(512))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        SystemExit, match=r"000077.mat is of COCO-Stuff 10k version 1.0, which needs h5py: pip install h5py"
    ):
        prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)


def test_coco_stuff_of_an_unknown_value(tmp_path, prepare):
    trees.write_coco_stuff(tmp_path)
    path = tmp_path / "coco/coco_stuff_10k/annotations/COCO_train2014_000000000077.mat"
    trees.scipy.io.savemat(path, {"S": np.full((48, 64), 12, dtype=np.uint8)})  # a street sign: in no image of COCO
    with pytest.raises(SystemExit, match=r"000077.mat: has the value 12, which COCO-Stuff 10k does not use"):
        prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)


def test_cityscapes_writes_what_cityscapesscripts_write(tmp_path, prepare):
    trees.write_cityscapes(tmp_path)
    truth = tmp_path / "cityscapes/gtFine"
    prepare("prepare_cityscapes", tmp_path)
    (tmp_path / "expected").mkdir()
    convert2panoptic(str(truth), str(tmp_path / "expected"), False, ["train", "val", "test"])
    for split in ("train", "val", "test"):
        name = f"cityscapes_panoptic_{split}"
        content = json.loads((truth / f"{name}.json").read_text())
        assert content == json.loads((tmp_path / f"expected/{name}.json").read_text())
        assert [len(annotation["segments_info"]) for annotation in content["annotations"]] == [6, 6]
        for annotation in content["annotations"]:
            made = truth / name / annotation["file_name"]
            np.testing.assert_array_equal(read(made), read(tmp_path / "expected" / name / annotation["file_name"]))
        for polygons in truth.glob(f"{split}/*/*_polygons.json"):
            json2labelImg(str(polygons), str(tmp_path / "expected.png"), "trainIds")
            made = Path(str(polygons).replace("_polygons.json", "_labelTrainIds.png"))
            assert made.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_cityscapes_goes_on_where_it_stopped(tmp_path, prepare):
    trees.write_cityscapes(tmp_path)
    prepare("prepare_cityscapes", tmp_path)
    truth = tmp_path / "cityscapes/gtFine"
    kept, lost = sorted(truth.glob("train/*/*_labelTrainIds.png"))
    kept.write_text("kept")
    lost.unlink()
    (truth / "cityscapes_panoptic_val.json").unlink()
    (truth / "cityscapes_panoptic_train.json").write_text("kept")
    prepare("prepare_cityscapes", tmp_path)
    assert kept.read_text() == (truth / "cityscapes_panoptic_train.json").read_text() == "kept"
    assert lost.is_file()
    assert json.loads((truth / "cityscapes_panoptic_val.json").read_text())["images"]


def test_cityscapes_without_instances_is_an_error(tmp_path, prepare):
    trees.write_cityscapes(tmp_path)
    for path in (tmp_path / "cityscapes/gtFine/val").glob("*/*_instanceIds.png"):
        path.unlink()
    with pytest.raises(SystemExit, match=r"gtFine/val: has no \*/\*_gtFine_instanceIds.png. Unpack gtFine anew"):
        prepare("prepare_cityscapes", tmp_path)


@pytest.mark.parametrize(("version", "nested", "things"), [("v1.2", False, 3), ("v1.2", True, 3), ("v2.0", False, 2)])
def test_mapillary_vistas_instances(version, nested, things, tmp_path, prepare):
    trees.write_mapillary_vistas(tmp_path, version, nested)
    prepare("prepare_mapillary_vistas_ins_seg", tmp_path)
    root = tmp_path / "mapillary_vistas"
    table = read_table(f"mapillary_vistas_{version}")
    prefix = {"v1.2": "mapillary_vistas", "v2.0": "mapillary_vistas_v2"}[version]
    assert len(list(root.glob("*.json"))) == 2
    for split, folder in (("train", "training"), ("val", "validation")):
        content = json.loads((root / f"{prefix}_instance_{split}.json").read_text())
        assert [category["id"] for category in content["categories"]] == [
            i for i, label in enumerate(table, 1) if label["instances"] and label["evaluate"]
        ]
        assert len(content["annotations"]) == 2 * things
        annotations = root / folder / version if nested or version == "v2.0" else root / folder
        for annotation in content["annotations"]:
            mask = mask_util.decode(annotation["segmentation"]).astype(bool)
            classes = read(annotations / "labels" / f"{annotation['image_id']}.png")
            assert set(classes[mask]) == {annotation["category_id"] - 1}
            assert annotation["area"] == mask.sum() == (classes == annotation["category_id"] - 1).sum()
        assert {image["file_name"] for image in content["images"]} == {
            path.name for path in (root / folder / "images").iterdir()
        }
