"""LVIS under Detectron2's names, without the package ``lvis``, which does not run with today's NumPy."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .official import require

__all__ = ["load_lvis", "read_lvis_by_itself"]


def read_lvis_by_itself() -> None:
    """Replace Detectron2's loaders of ``lvis_*``; names, files and metadata stay."""
    for name in [name for name in DatasetCatalog if name.startswith("lvis_")]:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, _loader(name))


def load_lvis(json_file: Path, image_root: Path, to_contiguous: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """Read an LVIS file into Detectron2's dataset dicts.

    Args:
        json_file: LVIS' annotation file.
        image_root: Folder with COCO's folders of images.
        to_contiguous: From the file's category ids to contiguous ones; None subtracts 1.

    Returns:
        Per image "file_name", "image_id", "height", "width", "annotations", and LVIS' "neg_category_ids" (classes that
        it has none of) and "not_exhaustive_category_ids" (classes of which it may have more than are annotated).

    Raises:
        ValueError: An annotation has no polygons, or one of fewer than three points.
    """
    content = json.loads(json_file.read_text())
    annotations = defaultdict(list)
    for annotation in content.get("annotations", []):  # the test sets have none
        annotations[annotation["image_id"]].append(_read_annotation(json_file, annotation, to_contiguous))
    return [
        {
            # The file names no folders: the images of LVIS' splits are spread over COCO's.
            "file_name": str(image_root.joinpath(*image["coco_url"].split("/")[-2:])),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "neg_category_ids": image.get("neg_category_ids", []),
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
            "annotations": annotations[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _read_annotation(
    json_file: Path, annotation: dict[str, Any], to_contiguous: dict[int, int] | None
) -> dict[str, Any]:
    polygons = annotation["segmentation"]
    if not polygons or any(len(polygon) % 2 or len(polygon) < 6 for polygon in polygons):
        raise ValueError(
            f"{json_file}: annotation {annotation['id']} has no polygons, or one that is not x and y of three points "
            "or more. Download the file again."
        )
    category = annotation["category_id"]
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category - 1 if to_contiguous is None else to_contiguous[category],
        "segmentation": polygons,
    }


def _loader(name: str) -> Callable[[], list[dict[str, Any]]]:
    def load() -> list[dict[str, Any]]:
        metadata = MetadataCatalog.get(name)
        json_file, image_root = Path(metadata.json_file), Path(metadata.image_root)
        require([json_file, image_root], "Download LVIS' annotations and COCO's images.")
        return load_lvis(json_file, image_root, metadata.get("thing_dataset_id_to_contiguous_id"))

    return load
