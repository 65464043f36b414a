"""Make Cityscapes' maps of training ids (*_labelTrainIds.png) and its panoptic annotations (cityscapes_panoptic_*).

The files are those of createTrainIdLabelImgs.py and createPanopticImgs.py of cityscapesscripts, which use one process.
Reads cityscapes/gtFine/{train,val,test}.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.helpers.labels import id2label, labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg

from mask2former.data.datasets.segments import measure_segments
from mask2former.data.panoptic_png import write_panoptic_png
from mask2former.data.prepare import Job, present, run_script, whole_file, write_json
from mask2former.image_io import read_label_image


def write_train_ids(source: Path) -> None:
    """Draw the polygons of one image."""
    with whole_file(train_ids_of(source)) as unfinished:
        json2labelImg(str(source), str(unfinished), "trainIds")


def train_ids_of(source: Path) -> Path:
    """Where the map of an image is."""
    return source.with_name(source.name.replace("_polygons.json", "_labelTrainIds.png"))


def write_panoptic(target: Path, source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the PNG of one image; returns its entries of "images" and "annotations"."""
    pixels = read_label_image(source)
    found, numbers = np.unique(pixels, return_inverse=True)
    numbers = numbers.reshape(pixels.shape) + 1
    segments = []
    for i, (segment_id, measures) in enumerate(zip(found.tolist(), measure_segments(numbers), strict=True), 1):
        # Instances are class * 1000 + number; a class of things alone is a group that nobody could tell apart.
        label = id2label[segment_id // 1000 if segment_id >= 1000 else segment_id]
        if label.ignoreInEval:
            pixels[numbers == i] = 0
            continue
        crowd = int(segment_id < 1000 and label.hasInstances)
        segments.append({"id": segment_id, "category_id": label.id, "iscrowd": crowd, **measures})
    name = source.name.replace("_gtFine_instanceIds.png", "")
    with whole_file(target / f"{name}_gtFine_panoptic.png") as unfinished:
        write_panoptic_png(unfinished, pixels)
    height, width = pixels.shape
    image = {"id": name, "file_name": f"{name}_gtFine_leftImg8bit.png", "height": height, "width": width}
    return image, {"image_id": name, "file_name": f"{name}_gtFine_panoptic.png", "segments_info": segments}


def prepare(job: Job) -> None:
    """Convert every split that is there."""
    root = job.root / "cityscapes" / "gtFine"
    categories = [
        {
            "id": label.id,
            "name": label.name,
            "color": label.color,
            "supercategory": label.category,
            "isthing": int(label.hasInstances),
        }
        for label in labels
        if not label.ignoreInEval
    ]
    splits = {name: [root / name] for name in ("train", "val", "test")}
    for name in present(splits, "Unpack gtFine_trainvaltest.zip of Cityscapes there."):
        polygons = sorted((root / name).glob("*/*_gtFine_polygons.json"))
        job.map(write_train_ids, job.missing(polygons, train_ids_of), f"Writing *_labelTrainIds.png of {name}")
        target = root / f"cityscapes_panoptic_{name}"
        json_file = target.with_suffix(".json")
        if job.must_make(json_file):
            sources = sorted((root / name).glob("*/*_gtFine_instanceIds.png"))
            if not sources:
                raise FileNotFoundError(f"{root / name}: has no */*_gtFine_instanceIds.png. Unpack gtFine anew.")
            images, annotations = zip(
                *job.map(partial(write_panoptic, target), sources, f"Writing {target}"), strict=True
            )
            write_json(json_file, {"images": images, "annotations": annotations, "categories": categories})


if __name__ == "__main__":
    run_script(prepare, __doc__)
