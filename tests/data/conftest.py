"""Small data sets that the tests write themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from mask2former import add_maskformer2_config

Write = Callable[[str, np.ndarray], Path]


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = 64
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    return cfg


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where relative paths of ``DATASETS.CUSTOM`` start; what is converted goes beside it."""
    root = tmp_path / "datasets"
    root.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def write(data_root: Path) -> Write:
    """Write an array as the picture at a path below the data root."""

    def _write(path: str, pixels: np.ndarray) -> Path:
        file = data_root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        return file

    return _write


@pytest.fixture
def scene() -> dict[str, np.ndarray]:
    """A street of 40 x 60: road below, unlabelled sky above, two cars side by side, one person, and a crowd of people.

    Class values are 0 road, 1 car, 2 person, 255 unlabelled; the image shows each segment in a colour of its own.
    """
    classes = np.full((40, 60), 255, dtype=np.uint8)
    instances = np.zeros((40, 60), dtype=np.uint16)
    classes[20:] = 0
    for number, value, rows, columns in (
        (1, 1, slice(18, 30), slice(4, 18)),
        (300, 1, slice(18, 30), slice(18, 30)),  # needs 16 bits, and touches the other car
        (2, 2, slice(10, 34), slice(34, 42)),
        (0, 2, slice(12, 24), slice(48, 58)),  # without id: a crowd
    ):
        classes[rows, columns] = value
        instances[rows, columns] = number
    key = classes.astype(np.int64) * 1000 + instances
    image = np.stack([(key * 37) % 256, (key * 91) % 256, (key * 53) % 256], axis=2).astype(np.uint8)
    return {"image": image, "classes": classes, "instances": instances}


@pytest.fixture
def id_png_entry(write: Write, scene: dict[str, np.ndarray]) -> dict[str, Any]:
    """Two images in the form of ``id_png``, the second of a road and nothing else."""
    empty = np.zeros((24, 32), dtype=np.uint8)
    write("own/images/a.png", scene["image"])
    write("own/images/deep/b.png", np.full((24, 32), 90, dtype=np.uint8))
    write("own/instances/a.png", scene["instances"])
    write("own/instances/deep/b.png", empty)
    write("own/classes/a.png", scene["classes"])
    write("own/classes/deep/b.png", empty)
    return {
        "FORMAT": "id_png",
        "IMAGES": "own/images",
        "INSTANCES": "own/instances",
        "CLASSES": "own/classes",
        "CLASS_NAMES": ["road", "car", "person"],
        "THINGS": ["car", "person"],
    }


@pytest.fixture
def coco_instance_entry(write: Write, data_root: Path, scene: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same scene as COCO instances: a polygon, both spellings of RLE, and a crowd; and an image without any."""
    write("coco/images/a.png", scene["image"])
    write("coco/images/b.png", np.full((24, 32), 90, dtype=np.uint8))
    masks = [scene["instances"] == number for number in (1, 300, 2)]
    masks.append((scene["classes"] == 2) & (scene["instances"] == 0))
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    for rle in rles:
        rle["counts"] = rle["counts"].decode()
    segmentations: list[Any] = [[[4, 18, 18, 18, 18, 30, 4, 30]], rles[1], _uncompressed(masks[2]), rles[3]]
    content = {
        "info": {},
        "images": [
            {"id": 7, "file_name": "a.png", "height": 40, "width": 60},
            {"id": 9, "file_name": "b.png", "height": 24, "width": 32},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": category,
                "iscrowd": int(number == 4),
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask_util.area(rle)),
                "segmentation": segmentation,
            }
            for number, category, rle, segmentation in zip(range(1, 5), (3, 3, 8, 8), rles, segmentations, strict=True)
        ],
        "categories": [{"id": 8, "name": "person"}, {"id": 3, "name": "car"}],
    }
    (data_root / "coco/instances.json").write_text(json.dumps(content))
    return {"FORMAT": "coco_instance", "IMAGES": "coco/images", "ANNOTATIONS": "coco/instances.json"}


@pytest.fixture
def coco_panoptic_entry(write: Write, data_root: Path, scene: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same scene as COCO panoptic, with large segment ids and categories in no order."""
    write("pan/images/a.png", scene["image"])
    classes, instances = scene["classes"], scene["instances"]
    ids = np.zeros(classes.shape, dtype=np.int64)
    segments = []
    for number, category, crowd, mask in (
        (70000, 21, 0, classes == 0),
        (256, 3, 0, instances == 1),
        (5, 3, 0, instances == 300),
        (16777214, 8, 0, instances == 2),
        (6, 8, 1, (classes == 2) & (instances == 0)),
    ):
        ids[mask] = number
        segments.append(
            {"id": number, "category_id": category, "iscrowd": crowd, "area": int(mask.sum()), "bbox": [0, 0, 1, 1]}
        )
    write("pan/segments/a.png", np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8))
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 21, "name": "road", "isthing": 0},
            {"id": 8, "name": "person", "isthing": 1},
            {"id": 3, "name": "car", "isthing": 1},
        ],
    }
    (data_root / "pan/panoptic.json").write_text(json.dumps(content))
    return {
        "FORMAT": "coco_panoptic",
        "IMAGES": "pan/images",
        "ANNOTATIONS": "pan/panoptic.json",
        "SEGMENTS": "pan/segments",
    }


def _uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's plain run lengths, counted pixel by pixel."""
    counts, current = [0], False
    for value in mask.ravel(order="F").tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}
