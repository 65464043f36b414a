"""Pictures of random ellipses, with annotations and predictions in COCO's formats, for benchmarks that need no data."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools.coco import COCO

__all__ = ["PREDICTIONS", "SIZE", "draw_ellipse", "draw_panoptic_data", "make_instances", "make_panoptic"]

SIZE = 480, 640
NUM_CLASSES, OBJECTS, PREDICTIONS = 80, 12, 100


def draw_ellipse(rng: np.random.Generator) -> np.ndarray:
    """A mask (H, W) bool."""
    mask = np.zeros(SIZE, np.uint8)
    centre = int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0]))
    axes = int(rng.integers(8, 120)), int(rng.integers(8, 120))
    cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, (1,), -1)
    return mask.astype(bool)


def make_instances(images: int, rng: np.random.Generator) -> tuple[COCO, list[dict[str, Any]]]:
    """Annotations, and predictions of which the first of each picture are the objects, moved a little."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(images):
        masks = [draw_ellipse(rng) for _ in range(PREDICTIONS)]
        for number, mask in enumerate(masks):
            category_id = number % NUM_CLASSES
            if number < OBJECTS:
                annotation = as_object(mask, image_id, category_id)
                annotations.append({**annotation, "id": len(annotations) + 1, "iscrowd": 0})
                mask = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            results.append({**as_object(mask, image_id, category_id), "score": float(rng.random())})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in range(images)],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": str(category_id)} for category_id in range(NUM_CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, results


def as_object(mask: np.ndarray, image_id: int, category_id: int) -> dict[str, Any]:
    """An annotation in COCO's format."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    place = {"image_id": image_id, "category_id": category_id}
    return {**place, "segmentation": rle, "bbox": mask_util.toBbox(rle).tolist(), "area": int(mask_util.area(rle))}


def make_panoptic(
    images: int, rng: np.random.Generator, folder: Path
) -> tuple[list[dict[str, Any]], Path, dict[str, Any], Path]:
    """Predictions, their folder, annotations and their folder: segments, and the same moved a little."""
    sets: dict[str, list[dict[str, Any]]] = {"predictions": [], "truth": []}
    for image_id in range(images):
        ids = np.full(SIZE, 1)
        for number in range(2, OBJECTS + 2):
            ids[draw_ellipse(rng)] = number
        for name, content in sets.items():
            file_name = f"{image_id}.png"
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(ids)).save(folder / name / file_name)
            segments = [
                {"id": i, "category_id": i, "iscrowd": 0, "area": int((ids == i).sum())}
                for i in np.unique(ids).tolist()
            ]
            content.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
            ids = np.roll(ids, rng.integers(-4, 5, 2), (0, 1))
    truth = {
        "images": [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in range(images)],
        "annotations": sets["truth"],
        "categories": [{"id": i, "name": str(i), "isthing": 1} for i in range(OBJECTS + 2)],
    }
    return sets["predictions"], folder / "predictions", truth, folder / "truth"


def draw_panoptic_data(images: int, folder: Path) -> tuple[Path, Path, Path]:
    """Write photographs (of clouds of noise), panoptic annotations and their PNGs.

    Returns:
        The folder of photographs, the JSON and the folder of PNGs.
    """
    rng = np.random.default_rng(0)
    _, _, truth, segments = make_panoptic(images, rng, folder)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.jpg"
        noise = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / image["file_name"]), cv2.resize(noise, SIZE[::-1]))
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder / "images", folder / "truth.json", segments
