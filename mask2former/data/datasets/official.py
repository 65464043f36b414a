"""What the official data sets share: names in the catalogs, and errors that say which script makes what is missing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sem_seg

from .coco_panoptic import load_coco_panoptic

__all__ = ["register_dataset", "register_instances", "register_panoptic", "register_sem_seg", "require"]

Records = list[dict[str, Any]]


def register_dataset(name: str, load: Callable[[], Records], metadata: dict[str, Any]) -> None:
    """Add a data set to Detectron2's catalogs; one that another package has registered under that name stays."""
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def register_sem_seg(
    name: str, image_root: Path, sem_seg_root: Path, hint: str, metadata: dict[str, Any], suffix: str = "png"
) -> None:
    """Register JPEGs with label maps of the same names, evaluated by mIoU.

    Args:
        name: Of the data set.
        image_root: Folder of images.
        sem_seg_root: Folder of label maps.
        hint: Where they come from, for the error when they are absent.
        metadata: With ``stuff_classes`` and ``ignore_label``.
        suffix: Of the label maps.
    """

    def load() -> Records:
        require([image_root, sem_seg_root], hint)
        return load_sem_seg(str(sem_seg_root), str(image_root), gt_ext=suffix, image_ext="jpg")

    files = {"image_root": str(image_root), "sem_seg_root": str(sem_seg_root)}
    register_dataset(name, load, {**files, "evaluator_type": "sem_seg", **metadata})


def register_instances(name: str, image_root: Path, json_file: Path, hint: str, metadata: dict[str, Any]) -> None:
    """Register instances in COCO's format, evaluated by COCO's AP; the arguments are as above."""

    def load() -> Records:
        require([image_root, json_file], hint)
        return load_coco_json(str(json_file), str(image_root), name)

    files = {"image_root": str(image_root), "json_file": str(json_file)}
    register_dataset(name, load, {**files, "evaluator_type": "coco", **metadata})


def register_panoptic(
    name: str,
    files: dict[str, Path],
    hint: str,
    metadata: dict[str, Any],
    unused_categories: frozenset[int] = frozenset(),
) -> None:
    """Register a data set in COCO's panoptic format.

    Args:
        name: Of the data set.
        files: "image_root", "panoptic_root", "panoptic_json", "json_file" (COCO instances, for the evaluation of AP)
            and, unless the classes of pixels are to be taken from the panoptic annotation, "sem_seg_root".
        hint: Where they come from, for the error when they are absent.
        metadata: Classes, ``evaluator_type`` and ``ignore_label``.
        unused_categories: Segments of these are void.
    """

    def load() -> Records:
        require([files[key] for key in ("image_root", "panoptic_json", "panoptic_root")], hint)
        return load_coco_panoptic(
            files["panoptic_json"],
            files["image_root"],
            files["panoptic_root"],
            files.get("sem_seg_root"),
            metadata,
            unused_categories,
        )

    paths = {key: str(path) for key, path in files.items()}
    register_dataset(name, load, {**paths, "label_divisor": 1000, **metadata})


def require(paths: Sequence[Path], hint: str) -> None:
    """Raise FileNotFoundError, which names all of ``paths`` that do not exist and repeats the hint."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: not found. {hint} datasets/README.md shows the whole tree; it starts at "
            "$DETECTRON2_DATASETS (default ./datasets)."
        )
