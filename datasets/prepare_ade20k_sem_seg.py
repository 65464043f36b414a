"""Make ADE20K's semantic maps (annotations_detectron2): classes from 0, and 255 for what has none.

Reads ADEChallengeData2016/annotations, whose values are 1 to 150, and 0 for what has no class.
"""

from pathlib import Path

import numpy as np

from mask2former.data.datasets.files import find_files
from mask2former.data.prepare import Job, present, run_script, write_image
from mask2former.image_io import read_label_image

NUM_CLASSES = 150


def convert(task: tuple[Path, Path]) -> None:
    """Convert one map."""
    source, target = task
    classes = read_label_image(source)
    if classes.max() > NUM_CLASSES:
        raise ValueError(
            f"{source}: has value {classes.max()}, expected 0 to {NUM_CLASSES}. Is it of the scene parsing benchmark, "
            "ADEChallengeData2016?"
        )
    write_image(target, (classes.astype(np.uint8) - 1).astype(np.uint8))  # 0 becomes 255


def prepare(job: Job) -> None:
    """Convert both splits."""
    root = job.root / "ADEChallengeData2016"
    splits = {name: [root / "annotations" / name] for name in ("training", "validation")}
    for name in present(splits, "Unpack ADEChallengeData2016.zip of the scene parsing benchmark there."):
        [source], target = splits[name], root / "annotations_detectron2" / name
        tasks = [(file, target / file.relative_to(source)) for file in find_files(source, (".png",))]
        job.map(convert, job.missing(tasks, lambda task: task[1]), f"Writing {target}")


if __name__ == "__main__":
    run_script(prepare, __doc__)
