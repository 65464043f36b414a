"""Make the images and semantic maps of COCO-Stuff 10k that training reads.

Reads coco/coco_stuff_10k: imageLists/{train,test}.txt, images and annotations, of version 1.0 (needs h5py) or 1.1.
Writes images_detectron2 (links, or copies where links cannot be) and annotations_detectron2.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import scipy.io

from mask2former.data.datasets.files import read_lines
from mask2former.data.datasets.tables import read_table
from mask2former.data.panoptic_png import check_label_size
from mask2former.data.prepare import Job, present, run_script, whole_file, write_image
from mask2former.image_io import image_size

VOID = 255


def read_classes(path: Path) -> np.ndarray:
    """Read the map "S" of a .mat file: (H, W) uint8, contiguous classes and VOID.

    Version 1.1 are MATLAB 5 files of COCO's ids, 0 for none. Version 1.0 are MATLAB 7.3 (HDF5) files, stored column by
    column, with 1 for none and k + 2 for class k.
    """
    try:
        return _lookup(path, scipy.io.loadmat(path)["S"], {0: VOID} | _class_of_coco_id())
    except NotImplementedError:  # of SciPy: the format of 7.3
        classes = range(len(_class_of_coco_id()))
        return _lookup(path, _read_hdf5(path).T, {1: VOID} | {class_id + 2: class_id for class_id in classes})


def _class_of_coco_id() -> dict[int, int]:
    return {entry["id"]: class_id for class_id, entry in enumerate(read_table("coco_stuff"))}


def _read_hdf5(path: Path) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} is of COCO-Stuff 10k version 1.0, which needs h5py: pip install h5py.") from error
    with h5py.File(path) as file:
        return np.array(file["S"])


def _lookup(path: Path, values: np.ndarray, classes: dict[int, int]) -> np.ndarray:
    unknown = np.setdiff1d(values, list(classes))
    if len(unknown):
        raise ValueError(
            f"{path}: has the value {unknown[0]}, which COCO-Stuff 10k does not use. "
            "Is it of COCO-Stuff 10k version 1.0 or 1.1?"
        )
    lookup = np.zeros(max(classes) + 1, dtype=np.uint8)
    lookup[list(classes)] = list(classes.values())
    return lookup[values.astype(np.int64)]


def convert(root: Path, task: tuple[str, str]) -> None:
    """Convert one image; the map, by which finished work is known, comes last."""
    split, name = task
    image = root / "images" / f"{name}.jpg"
    classes = read_classes(root / "annotations" / f"{name}.mat")
    check_label_size(image, classes, image_size(image))
    with whole_file(root / "images_detectron2" / split / image.name) as unfinished:
        unfinished.unlink()
        try:
            os.link(image, unfinished)
        except OSError:  # another file system, or one without links
            shutil.copyfile(image, unfinished)
    write_image(map_of(root, task), classes)


def map_of(root: Path, task: tuple[str, str]) -> Path:
    """Where the map of an image is written."""
    split, name = task
    return root / "annotations_detectron2" / split / f"{name}.png"


def prepare(job: Job) -> None:
    """Convert both splits."""
    root = job.root / "coco" / "coco_stuff_10k"
    splits = {
        split: [root / "imageLists" / f"{split}.txt", root / "images", root / "annotations"]
        for split in ("train", "test")
    }
    for split in present(splits, "Unpack cocostuff-10k-v1.0.zip (or v1.1) there."):
        tasks = [(split, name) for name in read_lines(splits[split][0])]
        job.map(partial(convert, root), job.missing(tasks, partial(map_of, root)), f"Converting {split}")


if __name__ == "__main__":
    run_script(prepare, __doc__)
