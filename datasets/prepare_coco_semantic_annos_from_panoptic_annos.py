"""Make COCO's semantic maps (panoptic_semseg_*) of its panoptic annotations, for the evaluation of mIoU."""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mask2former.data.datasets.categories import Category, panoptic_metadata
from mask2former.data.datasets.coco_panoptic import load_coco_panoptic
from mask2former.data.datasets.derived import write_semantic_png
from mask2former.data.panoptic_png import read_segment_labels
from mask2former.data.prepare import Job, present, run_script, whole_file


def convert(num_classes: int, dataset_dict: dict[str, Any]) -> None:
    """Write the map of one image."""
    numbers = read_segment_labels(dataset_dict, (dataset_dict["height"], dataset_dict["width"]))
    with whole_file(Path(dataset_dict["sem_seg_file_name"])) as unfinished:
        write_semantic_png(unfinished, numbers, dataset_dict["segments_info"], num_classes)


def prepare(job: Job) -> None:
    """Convert every split that is there."""
    root = job.root / "coco"
    metadata = panoptic_metadata([Category.from_coco(entry) for entry in COCO_CATEGORIES])
    splits = {
        name: [root / f"panoptic_{name}", root / "annotations" / f"panoptic_{name}.json"]
        for name in ("train2017", "val2017")
    }
    for name in present(splits, "Unpack COCO's panoptic annotations, and the panoptic_*.zip in them, there."):
        folder, json_file = splits[name]
        target = root / f"panoptic_semseg_{name}"
        dicts = load_coco_panoptic(json_file, root / name, folder, target, metadata)
        job.map(
            partial(convert, len(metadata["stuff_classes"])),
            job.missing(dicts, lambda dataset_dict: Path(dataset_dict["sem_seg_file_name"])),
            f"Writing {target}",
        )


if __name__ == "__main__":
    run_script(prepare, __doc__)
