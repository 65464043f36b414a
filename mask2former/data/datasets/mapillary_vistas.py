"""Mapillary Vistas: version 1.2 under the official names, and version 2.0."""

from pathlib import Path
from typing import Any

from .categories import Category, panoptic_metadata
from .official import register_panoptic, register_sem_seg
from .tables import read_table

__all__ = ["mapillary_vistas_categories", "panoptic_files", "register_all_mapillary_vistas", "unused_categories"]

_FOLDERS = {"train": "training", "val": "validation"}
_PANOPTIC_JSON = {"v1.2": "panoptic_2018.json", "v2.0": "panoptic_2020.json"}
_HINT = "They are part of Mapillary Vistas {version}, which has to be downloaded and unpacked there."


def register_all_mapillary_vistas(root: str | Path) -> None:
    """Register the data sets below ``root``.

    - ``mapillary_vistas_{sem_seg,panoptic}_{train,val}``: version 1.2, 65 classes, 37 of them things.
    - ``mapillary_vistas_v2_sem_seg_{train,val}``: version 2.0, all its 124 labels but "Unlabeled".
    - ``mapillary_vistas_v2_panoptic_{train,val}``: the 116 of them that the data set evaluates, 70 of them things.
    """
    root = Path(root, "mapillary_vistas")
    for split, folder in _FOLDERS.items():
        for version, prefix in (("v1.2", "mapillary_vistas"), ("v2.0", "mapillary_vistas_v2")):
            _register_sem_seg(f"{prefix}_sem_seg_{split}", root / folder, version)
            _register_panoptic(f"{prefix}_panoptic_{split}", root, split, version)


def mapillary_vistas_categories(version: str) -> list[Category]:
    """The categories of the panoptic annotations of "v1.2" or "v2.0": a label's id there is its pixel value plus 1."""
    return [
        Category(value + 1, label["readable"], label["instances"], tuple(label["color"]))
        for value, label in enumerate(read_table(f"mapillary_vistas_{version}"))
        if label["evaluate"]
    ]


def unused_categories(version: str) -> frozenset[int]:
    """The categories that are not evaluated: groups of objects, what is ambiguous, and "Unlabeled"."""
    labels = read_table(f"mapillary_vistas_{version}")
    return frozenset(value + 1 for value, label in enumerate(labels) if not label["evaluate"])


def panoptic_files(root: Path, split: str, version: str) -> dict[str, Path]:
    """The files of a panoptic data set; ``root`` is the folder mapillary_vistas."""
    annotations = _annotation_folder(root / _FOLDERS[split], version)
    prefix = "mapillary_vistas" if version == "v1.2" else "mapillary_vistas_v2"
    return {
        "image_root": root / _FOLDERS[split] / "images",
        "panoptic_root": annotations / "panoptic",
        "panoptic_json": annotations / "panoptic" / _PANOPTIC_JSON[version],
        "json_file": root / f"{prefix}_instance_{split}.json",
    }


def _annotation_folder(split_folder: Path, version: str) -> Path:
    """Where the annotations of a version are; the download of 2.0 has those of 1.2 in a folder of their own."""
    inside = split_folder / version
    return split_folder if version == "v1.2" and not inside.is_dir() else inside


def _register_sem_seg(name: str, split_folder: Path, version: str) -> None:
    # The label maps are used as they are, so their values are the classes, and the last one, "Unlabeled", is void.
    labels = read_table(f"mapillary_vistas_{version}")[:-1]
    register_sem_seg(
        name,
        split_folder / "images",
        _annotation_folder(split_folder, version) / "labels",
        _HINT.format(version=version),
        {
            "stuff_classes": [label["readable"] for label in labels],
            "stuff_colors": [label["color"] for label in labels],
            "ignore_label": len(labels),
        },
    )


def _register_panoptic(name: str, root: Path, split: str, version: str) -> None:
    categories = mapillary_vistas_categories(version)
    files = panoptic_files(root, split, version)
    metadata: dict[str, Any] = panoptic_metadata(categories, things_first=False)
    if version == "v1.2":
        # As in the official release, the classes of things are listed together with all others.
        metadata |= {"thing_classes": metadata["stuff_classes"], "thing_colors": metadata["stuff_colors"]}
        files["sem_seg_root"] = _annotation_folder(root / _FOLDERS[split], version) / "labels"
    void = len(read_table(f"mapillary_vistas_{version}")) - 1
    register_panoptic(
        name,
        files,
        _HINT.format(version=version),
        {**metadata, "evaluator_type": "mapillary_vistas_panoptic_seg", "ignore_label": void},
        unused_categories(version),
    )
