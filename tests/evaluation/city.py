"""A miniature of Cityscapes on disk, and noisy predictions of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

HEIGHT, WIDTH = 60, 90
THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
LABEL_IDS = [24, 25, 26, 27, 28, 31, 32, 33]


def write(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the annotations, register them, and give what a model would get and say.

    Three images of road, void, cars, people, a group of people and a bicycle.
    """
    rng = np.random.default_rng(0)
    inputs, outputs = [], []
    for number in range(3):
        name = f"aachen_{number:06d}_000019"
        ids = np.full((HEIGHT, WIDTH), 7)  # road
        ids[:8] = 4  # static: void
        found = []
        for i, instance in enumerate((26000, 26001, 24000, 24001, 24, 33000)):
            top, left = int(rng.integers(10, 30)), i * 15
            ids[top : top + int(rng.integers(12, 28)), left : left + 14] = instance
            found.append(instance)
        city = folder / "gtFine/val/aachen"
        city.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids.astype(np.uint16)).save(city / f"{name}_gtFine_instanceIds.png")
        classes = np.where(ids >= 1000, ids // 1000, ids)
        Image.fromarray(classes.astype(np.uint8)).save(city / f"{name}_gtFine_labelIds.png")
        inputs.append({"file_name": f"somewhere/{name}_leftImg8bit.png"})
        outputs.append(_predict(rng, ids, found))
    MetadataCatalog.get("cityscapes_scene").set(gt_dir=str(folder / "gtFine/val"), thing_classes=THINGS)
    return inputs, outputs


def _predict(rng: np.random.Generator, ids: np.ndarray, found: list[int]) -> dict[str, Any]:
    masks, classes = [], []
    for instance in [*found, 26000, 24000, 4]:  # some twice, and one where there is nothing but void
        mask = np.roll(ids == instance, rng.integers(-4, 5, 2).tolist(), axis=(0, 1))
        mask[:, : int(rng.integers(0, 3))] = False
        masks.append(mask)
        label = instance // 1000 if instance >= 1000 else instance
        classes.append(LABEL_IDS.index(label) if label in LABEL_IDS and rng.random() < 0.9 else 2)
    masks.append(np.zeros_like(masks[0]))
    instances = Instances(ids.shape)
    instances.pred_masks = torch.tensor(np.array(masks)).float()
    instances.pred_classes = torch.tensor([*classes, 0])
    instances.scores = torch.tensor(rng.random(len(masks)), dtype=torch.float32)
    train_ids = np.select([ids == 7, ids >= 26000, ids >= 24], [0, 13, 11], 5)
    scores = rng.random((19, *ids.shape)) * 1.02
    np.put_along_axis(scores, train_ids[None], 1, axis=0)
    return {"instances": instances, "sem_seg": torch.tensor(scores)}
