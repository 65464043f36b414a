"""Make Mapillary Vistas' instances in COCO's format (mapillary_vistas_instance_*.json), for the evaluation of AP.

Reads the panoptic annotations of versions 1.2 and 2.0, whichever are there.
"""

from pathlib import Path
from typing import Any

from mask2former.data.datasets.categories import panoptic_metadata
from mask2former.data.datasets.coco_panoptic import load_coco_panoptic
from mask2former.data.datasets.derived import instance_annotations, write_instances_json
from mask2former.data.datasets.mapillary_vistas import (
    mapillary_vistas_categories,
    panoptic_files,
    unused_categories,
)
from mask2former.data.panoptic_png import read_segment_labels
from mask2former.data.prepare import Job, present, run_script, whole_file


def convert(dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """The "annotations" of one image."""
    numbers = read_segment_labels(dataset_dict, (dataset_dict["height"], dataset_dict["width"]))
    segments = dataset_dict["segments_info"]
    return instance_annotations(dataset_dict["image_id"], numbers, segments, dataset_dict["dataset_ids"])


def prepare(job: Job) -> None:
    """Convert every version and split that is there."""
    root = job.root / "mapillary_vistas"
    parts = {
        f"{version} {split}": (version, panoptic_files(root, split, version))
        for version in ("v1.2", "v2.0")
        for split in ("train", "val")
    }
    inputs = {name: [files["panoptic_json"]] for name, (_, files) in parts.items()}
    for name in present(inputs, "Unpack Mapillary Vistas there."):
        version, files = parts[name]
        if job.must_make(files["json_file"]):
            make(job, version, files)


def make(job: Job, version: str, files: dict[str, Path]) -> None:
    """Make the file of one version and split."""
    categories = mapillary_vistas_categories(version)
    metadata = panoptic_metadata(categories, things_first=False)
    dataset_ids = {contiguous: number for number, contiguous in metadata["stuff_dataset_id_to_contiguous_id"].items()}
    dicts = load_coco_panoptic(
        files["panoptic_json"], files["image_root"], files["panoptic_root"], None, metadata, unused_categories(version)
    )
    tasks = [{**dataset_dict, "dataset_ids": dataset_ids} for dataset_dict in dicts]
    annotations = job.map(convert, tasks, f"Making {files['json_file']}")
    images = [
        {
            "id": dataset_dict["image_id"],
            "file_name": Path(dataset_dict["file_name"]).name,
            "height": dataset_dict["height"],
            "width": dataset_dict["width"],
        }
        for dataset_dict in dicts
    ]
    with whole_file(files["json_file"]) as unfinished:
        write_instances_json(unfinished, images, annotations, categories)


if __name__ == "__main__":
    run_script(prepare, __doc__)
