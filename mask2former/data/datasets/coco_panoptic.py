"""COCO panoptic data sets: the loader, and the official release's names."""

import json
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.utils.file_io import PathManager

from .categories import Category, panoptic_metadata

__all__ = [
    "get_metadata",
    "load_coco_panoptic",
    "register_all_coco_panoptic",
    "register_coco_panoptic_annos_sem_seg",
]


def load_coco_panoptic(
    panoptic_json: str | Path,
    image_root: str | Path,
    panoptic_root: str | Path,
    sem_seg_root: str | Path | None,
    metadata: dict[str, Any],
    unused_categories: Collection[int] = (),
) -> list[dict[str, Any]]:
    """Read a COCO panoptic file into Detectron2's dataset dicts.

    Args:
        panoptic_json: COCO's annotation file.
        image_root: Folder of the images that it names.
        panoptic_root: Folder of the PNGs of segment ids that it names.
        sem_seg_root: Folder of PNGs of contiguous class ids, of the same names; None where there are none.
        metadata: With the two ``*_dataset_id_to_contiguous_id``.
        unused_categories: Segments of these are left out, which makes them void.

    Returns:
        Per annotated image "file_name", "image_id", "height", "width", "pan_seg_file_name", "sem_seg_file_name" (if
        there are such) and "segments_info", whose "category_id" is contiguous and whose "isthing" is a bool.

    Raises:
        ValueError: An annotation names an image or a category that the file does not list.
    """
    with PathManager.open(str(panoptic_json)) as file:
        content = json.load(file)
    images = {image["id"]: image for image in content["images"]}
    dicts = []
    for annotation in content["annotations"]:
        if annotation["image_id"] not in images:
            raise ValueError(f'{panoptic_json}: image_id {annotation["image_id"]} is annotated but not in "images".')
        image = images[annotation["image_id"]]
        dicts.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": os.path.join(panoptic_root, annotation["file_name"]),
                "segments_info": [
                    _with_contiguous_id(segment, metadata, panoptic_json)
                    for segment in annotation["segments_info"]
                    if segment["category_id"] not in unused_categories
                ],
            }
        )
        if sem_seg_root is not None:
            dicts[-1]["sem_seg_file_name"] = os.path.join(sem_seg_root, annotation["file_name"])
    return dicts


def get_metadata() -> dict[str, Any]:
    """Metadata of COCO's 133 panoptic classes, as :func:`register_coco_panoptic_annos_sem_seg` takes it."""
    return panoptic_metadata([Category.from_coco(entry) for entry in COCO_CATEGORIES])


def register_coco_panoptic_annos_sem_seg(
    name: str,
    metadata: dict[str, Any],
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    sem_seg_root: str | Path,
    instances_json: str | Path,
) -> None:
    """Register a data set in COCO's panoptic format as ``{name}_with_sem_seg``, evaluated by PQ, AP and mIoU.

    The official release's function. As there, the metadata of ``name`` gets the things of ``metadata`` too: Detectron2
    lists COCO's stuff among the ``thing_classes`` of its panoptic data sets.

    Args:
        name: Of the data set, to which "_with_sem_seg" is added.
        metadata: Its classes, such as :func:`get_metadata` returns.
        image_root: Folder of images.
        panoptic_root: Folder of PNGs of segment ids.
        panoptic_json: COCO's panoptic annotation file.
        sem_seg_root: Folder of PNGs of contiguous class ids.
        instances_json: COCO's instance annotation file, for the evaluation of AP.
    """
    builtin = MetadataCatalog.get(name)
    for key in ("thing_classes", "thing_colors"):
        if builtin.get(key) not in (None, metadata[key]):
            delattr(builtin, key)
        builtin.set(**{key: metadata[key]})
    files: dict[str, Any] = {
        "image_root": str(image_root),
        "panoptic_root": str(panoptic_root),
        "panoptic_json": str(panoptic_json),
        "sem_seg_root": str(sem_seg_root),
    }
    with_sem_seg = f"{name}_with_sem_seg"
    DatasetCatalog.register(with_sem_seg, partial(load_coco_panoptic, metadata=metadata, **files))
    MetadataCatalog.get(with_sem_seg).set(
        **files,
        **metadata,
        json_file=str(instances_json),
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
    )


def register_all_coco_panoptic(root: str | Path) -> None:
    """Register ``coco_2017_{train,val}_panoptic_with_sem_seg`` below ``root``."""
    root = Path(root, "coco")
    for split in ("train2017", "val2017"):
        name = f"coco_{split[-4:]}_{split[:-4]}_panoptic"
        if f"{name}_with_sem_seg" in DatasetCatalog:
            continue
        register_coco_panoptic_annos_sem_seg(
            name,
            get_metadata(),
            root / split,
            root / f"panoptic_{split}",
            root / "annotations" / f"panoptic_{split}.json",
            root / f"panoptic_semseg_{split}",
            root / "annotations" / f"instances_{split}.json",
        )


def _with_contiguous_id(segment: dict[str, Any], metadata: dict[str, Any], source: str | Path) -> dict[str, Any]:
    category = segment["category_id"]
    contiguous = metadata["stuff_dataset_id_to_contiguous_id"]
    if category not in contiguous:
        raise ValueError(f'{source}: segment {segment["id"]} has category_id {category}, which is not in "categories".')
    isthing = category in metadata["thing_dataset_id_to_contiguous_id"]
    return {**segment, "category_id": contiguous[category], "isthing": isthing}
