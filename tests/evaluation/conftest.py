import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from panopticapi.utils import id2rgb
from PIL import Image

from mask2former import add_maskformer2_config

IGNORE = 255
HEIGHT, WIDTH = 40, 60
# id in the files, name, isthing; contiguous ids are their order
CATEGORIES = [(11, "cat", True), (12, "dog", True), (13, "sky", False), (14, "sea", False)]


@dataclass
class Scene:
    """A data set on disk and what some model says about it.

    Attributes:
        name: under which it is registered.
        inputs, outputs: of the model, one an image.
    """

    name: str
    folder: Path
    inputs: list[dict]
    outputs: list[dict]


def encode(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_segments(rng: np.random.Generator, categories: list[int]) -> tuple[np.ndarray, list[int]]:
    """Overlapping rectangles on void: ids (H, W) from 1, and the class of each id that is left."""
    ids, classes = np.zeros((HEIGHT, WIDTH), dtype=np.int64), [-1]
    for number in range(1, 9):
        y, x = int(rng.integers(0, HEIGHT - 12)), int(rng.integers(0, WIDTH - 12))
        ids[y : y + int(rng.integers(8, 24)), x : x + int(rng.integers(8, 30))] = number
        classes.append(int(rng.choice(categories)))
    return ids, classes


def predict(rng: np.random.Generator, ids: np.ndarray, classes: list[int], things: set[int]) -> dict:
    """The truth, shifted a little and with some classes mistaken, in the form of the model's output."""
    ids = np.roll(ids, (int(rng.integers(-2, 3)), int(rng.integers(-2, 3))), axis=(0, 1))
    guessed = {i: classes[i] if rng.random() < 0.8 else int(rng.integers(len(CATEGORIES))) for i in np.unique(ids) if i}
    scores = rng.random((len(CATEGORIES), HEIGHT, WIDTH))
    for i, guess in guessed.items():
        scores[guess, ids == i] += 1
    found = [i for i, guess in guessed.items() if guess in things]
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_masks = torch.tensor(np.array([ids == i for i in found]).reshape(-1, HEIGHT, WIDTH))
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.scores = torch.tensor(rng.random(len(found)))
    instances.pred_classes = torch.tensor([guessed[i] for i in found], dtype=torch.int64)
    return {
        "sem_seg": torch.tensor(scores),
        "panoptic_seg": (
            torch.tensor(ids, dtype=torch.int32),
            [{"id": int(i), "category_id": g, "isthing": g in things} for i, g in guessed.items()],
        ),
        "instances": instances,
    }


@pytest.fixture
def make_scene(tmp_path: Path) -> Callable[..., Scene]:
    """Writes and registers random annotations of ``images`` pictures; the last one has neither truth nor prediction."""
    registered = []

    def make(
        name: str = "scene", images: int = 6, things: tuple[int, ...] = (0, 1), seed: int = 0, **metadata: object
    ) -> Scene:
        rng = np.random.default_rng(seed)
        folder = tmp_path / name
        (folder / "panoptic").mkdir(parents=True)
        to_contiguous = {category_id: i for i, (category_id, *_) in enumerate(CATEGORIES)}
        to_file = {i: category_id for category_id, i in to_contiguous.items()}
        records, panoptic, instances, outputs = [], [], [], []
        for image_id in range(1, images + 1):
            ids, classes = random_segments(rng, list(to_file))
            if image_id == images:
                ids[:] = 0
            file_name = f"{image_id}.png"
            class_map = np.full(ids.shape, IGNORE)
            infos = []
            for i in (int(i) for i in np.unique(ids) if i):
                class_map[ids == i] = classes[i]
                mask = ids == i
                info = {"id": i, "category_id": classes[i], "isthing": classes[i] in things}
                infos.append({**info, "iscrowd": int(i == 3), "area": int(mask.sum())})
                if classes[i] in things:
                    rle = encode(mask)
                    instances.append(
                        {
                            "id": len(instances) + 1,
                            "image_id": image_id,
                            "category_id": to_file[classes[i]],
                            "segmentation": rle,
                            "bbox": mask_util.toBbox(rle).tolist(),
                            "area": int(mask.sum()),
                            "iscrowd": int(i == 3),
                        }
                    )
            Image.fromarray(class_map.astype(np.uint8)).save(folder / f"classes_{file_name}")
            Image.fromarray(id2rgb(ids)).save(folder / "panoptic" / file_name)
            records.append(
                {
                    "file_name": str(folder / file_name),
                    "image_id": image_id,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "sem_seg_file_name": str(folder / f"classes_{file_name}"),
                    "pan_seg_file_name": str(folder / "panoptic" / file_name),
                    "segments_info": infos,
                }
            )
            panoptic.append(
                {
                    "image_id": image_id,
                    "file_name": file_name,
                    "segments_info": [{**info, "category_id": to_file[info["category_id"]]} for info in infos],
                }
            )
            outputs.append(predict(rng, ids, classes, set(things)))
        categories = [{"id": to_file[i], "name": c[1], "isthing": int(i in things)} for i, c in enumerate(CATEGORIES)]
        listed = [{"id": r["image_id"], "file_name": r["file_name"], "height": HEIGHT, "width": WIDTH} for r in records]
        (folder / "panoptic.json").write_text(
            json.dumps({"images": listed, "annotations": panoptic, "categories": categories})
        )
        thing_categories = [category for category in categories if category["isthing"]]
        (folder / "instances.json").write_text(
            json.dumps({"info": {}, "images": listed, "annotations": instances, "categories": thing_categories})
        )
        DatasetCatalog.register(name, lambda: records)
        registered.append(name)
        defaults = {
            "thing_classes": [CATEGORIES[i][1] for i in things],
            "stuff_classes": [category[1] for category in CATEGORIES],
            "thing_dataset_id_to_contiguous_id": {to_file[i]: i for i in things},
            "stuff_dataset_id_to_contiguous_id": to_contiguous,
            "ignore_label": IGNORE,
            "label_divisor": 1000,
            "json_file": str(folder / "instances.json"),
            "panoptic_json": str(folder / "panoptic.json"),
            "panoptic_root": str(folder / "panoptic"),
            "evaluator_type": "coco_panoptic_seg",
        }
        MetadataCatalog.get(name).set(**{**defaults, **metadata})
        return Scene(name, folder, [dict(record) for record in records], outputs)

    yield make
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., CfgNode]:
    """Builds a configuration; ``A__B=value`` changes the key A.B."""

    def build(**changes: object) -> CfgNode:
        cfg = get_cfg()
        add_maskformer2_config(cfg)
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        for switch in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"):
            cfg.MODEL.MASK_FORMER.TEST[switch] = True
        cfg.merge_from_list([part for key, value in changes.items() for part in (key.replace("__", "."), value)])
        return cfg

    return build


@pytest.fixture
def run() -> Callable[..., dict]:
    """Gives an evaluator the inputs and outputs one by one."""

    def evaluate(evaluator, inputs: list[dict], outputs: list[dict]) -> dict:
        evaluator.reset()
        for pair in zip(inputs, outputs, strict=True):
            evaluator.process(*([item] for item in pair))
        return evaluator.evaluate()

    return evaluate
