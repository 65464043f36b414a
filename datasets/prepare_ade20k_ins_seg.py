"""Make ADE20K's instances in COCO's format (ade20k_instance_*.json) of its instance PNGs.

Reads ADEChallengeData2016/images and annotations_instance.
"""

from functools import partial
from pathlib import Path
from typing import Any

from mask2former.data.datasets.ade20k_annotations import read_ade20k_instances
from mask2former.data.datasets.derived import instance_annotations, write_instances_json
from mask2former.data.datasets.files import match_files
from mask2former.data.datasets.tables import read_categories
from mask2former.data.prepare import Job, present, run_script, whole_file
from mask2former.image_io import image_size


def convert(image_root: Path, files: tuple[Path, ...]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entry of "images" and the "annotations" of one image."""
    image, instance_png = files
    size = image_size(image)
    numbers, instances = read_ade20k_instances(instance_png, size)
    image_id = image.stem
    entry = {"id": image_id, "file_name": image.relative_to(image_root).as_posix(), "height": size[0], "width": size[1]}
    same_ids = {instance["category_id"]: instance["category_id"] for instance in instances}
    return entry, instance_annotations(image_id, numbers, instances, same_ids)


def prepare(job: Job) -> None:
    """Convert every split that is there."""
    root = job.root / "ADEChallengeData2016"
    folders = {"train": "training", "val": "validation"}
    splits = {
        name: [root / "images" / folder, root / "annotations_instance" / folder] for name, folder in folders.items()
    }
    for name in present(splits, "Unpack ADEChallengeData2016.zip and annotations_instance.tar there."):
        images, instances = splits[name]
        target = root / f"ade20k_instance_{name}.json"
        if job.must_make(target):
            converted = job.map(partial(convert, images), match_files(images, [instances]), f"Making {target}")
            with whole_file(target) as unfinished:
                write_instances_json(
                    unfinished,
                    [entry for entry, _ in converted],
                    [annotations for _, annotations in converted],
                    read_categories("ade20k_instance"),
                )


if __name__ == "__main__":
    run_script(prepare, __doc__)
