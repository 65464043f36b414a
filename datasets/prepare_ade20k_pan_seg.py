"""Make ADE20K's panoptic annotations (ade20k_panoptic_*) of its semantic maps and instance PNGs.

Reads ADEChallengeData2016/images, annotations and annotations_instance.
"""

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import IdGenerator

from mask2former.data.datasets.ade20k_annotations import read_ade20k_instances
from mask2former.data.datasets.files import match_files
from mask2former.data.datasets.segments import measure_segments
from mask2former.data.datasets.tables import read_table
from mask2former.data.panoptic_png import check_label_size
from mask2former.data.prepare import Job, present, run_script, write_image, write_json
from mask2former.image_io import image_size, read_label_image


def convert(target: Path, files: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the PNG of one image; returns its entries of "images" and "annotations"."""
    image, semantic, instance_png = files
    size = image_size(image)
    classes = read_label_image(semantic)
    check_label_size(semantic, classes, size)
    numbers, instances = read_ade20k_instances(instance_png, size)
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    segments = []
    categories = {category["id"]: category for category in read_table("ade20k")}
    new_id = IdGenerator(categories)
    np.random.seed(zlib.crc32(image.name.encode()))  # it draws the colours of instances
    # The two overlap. As in the official release things hide stuff, whose area and box are those before that.
    for class_id, measures in enumerate(measure_segments(classes)):
        if measures["area"] and not categories[class_id]["isthing"]:
            number, pixels[classes == class_id + 1] = new_id.get_id_and_color(class_id)
            segments.append({"id": int(number), "category_id": class_id, "iscrowd": 0, **measures})
    for i, instance in enumerate(instances, 1):
        number, pixels[numbers == i] = new_id.get_id_and_color(instance["category_id"])
        segments.append({"id": int(number), **{key: value for key, value in instance.items() if key != "isthing"}})
    file_name = f"{image.stem}.png"
    write_image(target / file_name, pixels)
    entry = {"id": image.stem, "file_name": image.name, "height": size[0], "width": size[1]}
    return entry, {"image_id": image.stem, "file_name": file_name, "segments_info": segments}


def prepare(job: Job) -> None:
    """Convert every split that is there."""
    root = job.root / "ADEChallengeData2016"
    splits = {
        name: [root / source / folder for source in ("images", "annotations", "annotations_instance")]
        for name, folder in {"train": "training", "val": "validation"}.items()
    }
    for name in present(splits, "Unpack ADEChallengeData2016.zip and annotations_instance.tar there."):
        target = root / f"ade20k_panoptic_{name}"
        json_file = target.with_suffix(".json")
        if job.must_make(json_file):
            files = match_files(splits[name][0], splits[name][1:])
            images, annotations = zip(*job.map(partial(convert, target), files, f"Writing {target}"), strict=True)
            write_json(json_file, {"images": images, "annotations": annotations, "categories": read_table("ade20k")})


if __name__ == "__main__":
    run_script(prepare, __doc__)
