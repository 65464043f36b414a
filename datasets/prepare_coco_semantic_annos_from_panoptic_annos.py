"""Make COCO's semantic maps (panoptic_semseg_*) of its panoptic annotations.

Run without arguments; the data are below $DETECTRON2_DATASETS, as datasets/README.md describes. A split whose
panoptic PNGs are absent is left out.
"""

import sys
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

import mask2former.data  # noqa: F401  registers the data sets
from mask2former.data.datasets.cache import run_parallel
from mask2former.data.datasets.derived import write_semantic_png
from mask2former.data.panoptic_png import read_segment_numbers


def prepare(name: str) -> None:
    """Write the semantic maps of one registered data set beside its panoptic ones."""
    metadata = MetadataCatalog.get(name)

    def convert(dataset_dict: dict[str, Any]) -> None:
        numbers = read_segment_numbers(dataset_dict, (dataset_dict["height"], dataset_dict["width"]))
        path = Path(dataset_dict["sem_seg_file_name"])
        write_semantic_png(path, numbers, dataset_dict["segments_info"], len(metadata.stuff_classes))

    run_parallel(convert, DatasetCatalog.get(name), f"Writing {metadata.sem_seg_root}")


def main() -> None:
    """Prepare every split that is there."""
    names = [f"coco_2017_{split}_panoptic_with_sem_seg" for split in ("train", "val")]
    present = [name for name in names if Path(MetadataCatalog.get(name).panoptic_root).is_dir()]
    if not present:
        expected = ", ".join(MetadataCatalog.get(name).panoptic_root for name in names)
        sys.exit(f"Found neither of {expected}. Set DETECTRON2_DATASETS to the folder that contains coco/.")
    for name in present:
        prepare(name)


if __name__ == "__main__":
    main()
