"""Make the images and semantic maps of the full ADE20K (847 classes) that training reads.

Reads ADE20K_2021_17_01/images/ADE/{training,validation}/**: ADE_*.jpg, and beside each its ADE_*_seg.png, where a
pixel's object is red // 10 * 256 + green. Writes them as images_detectron2 and annotations_detectron2, with a shorter
edge of 512 pixels at most; maps are TIFF of 16 bits, with classes from 0, and 65535 for objects that are none of them.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mask2former.data.datasets.files import find_files
from mask2former.data.datasets.tables import read_table
from mask2former.data.panoptic_png import check_label_size
from mask2former.data.prepare import Job, present, run_script, write_image

SHORT_EDGE = 512
VOID = 65535


def class_of_object() -> np.ndarray:
    """The class of every object number, VOID for most."""
    lookup = np.full(1 << 16, VOID, dtype=np.uint16)
    for class_id, entry in enumerate(read_table("ade20k_full")):
        lookup[entry["id"]] = class_id
    return lookup


def smaller_size(height: int, width: int) -> tuple[int, int]:
    """Height and width after the shorter edge is scaled down to SHORT_EDGE; smaller images stay."""
    short = min(height, width)
    if short <= SHORT_EDGE:
        return height, width
    if width >= height:
        return SHORT_EDGE, round(width / height * SHORT_EDGE)
    return round(height / width * SHORT_EDGE), SHORT_EDGE


def convert(root: Path, lookup: np.ndarray, source: Path) -> None:
    """Convert one image and its map; the map, by which finished work is known, comes last."""
    with Image.open(source) as opened, Image.open(source.with_name(f"{source.stem}_seg.png")) as coded:
        image, code = np.asarray(opened), np.asarray(coded).astype(np.int32)
    objects: np.ndarray = code[..., 0] // 10 * 256 + code[..., 1]
    check_label_size(source, objects, (image.shape[0], image.shape[1]))
    height, width = smaller_size(*objects.shape)
    if (height, width) != objects.shape:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        objects = cv2.resize(objects, (width, height), interpolation=cv2.INTER_NEAREST)
    image_path, map_path = outputs(root, source)
    write_image(image_path, image)
    write_image(map_path, lookup[objects])


def outputs(root: Path, source: Path) -> tuple[Path, Path]:
    """Where the image and the map of an image are written; the split is part of its name."""
    split = "validation" if source.name.split("_")[1] == "val" else "training"
    return (
        root / "images_detectron2" / split / source.name,
        root / "annotations_detectron2" / split / f"{source.stem}.tif",
    )


def prepare(job: Job) -> None:
    """Convert both splits."""
    root = job.root / "ADE20K_2021_17_01"
    splits = {name: [root / "images" / "ADE" / name] for name in ("training", "validation")}
    for name in present(splits, "Unpack the full ADE20K (ADE20K_2021_17_01.zip) there."):
        images = find_files(splits[name][0], (".jpg",))
        todo = job.missing(images, lambda image: outputs(root, image)[1])
        job.map(partial(convert, root, class_of_object()), todo, f"Converting {splits[name][0]}")


if __name__ == "__main__":
    run_script(prepare, __doc__)
