"""ADE20K's instance PNGs: red is the class among the 100 things, green the number of the instance."""

from pathlib import Path
from typing import Any

import numpy as np

from mask2former.image_io import read_image

from ..panoptic_png import check_label_size
from .segments import measure_segments
from .tables import read_table

__all__ = ["read_ade20k_instances"]


def read_ade20k_instances(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Read the instances of an image.

    Args:
        path: A PNG of ``annotations_instance``.
        size: Height and width of the image.

    Returns:
        numbers: (H, W) int64, 0 for pixels of no instance, i for the (i - 1)th one, in the order of the file's numbers.
        instances: "category_id" (the class among the 150), "isthing", "iscrowd", "area" and "bbox" of each.

    Raises:
        ValueError: The size is another, or an instance has no class, an unknown one or several.
    """
    red, green, _ = np.moveaxis(read_image(path), 2, 0)
    check_label_size(path, green, size)
    found, numbers = np.unique(green, return_inverse=True)
    numbers = numbers.reshape(green.shape) + int(found[0] != 0)  # 0 is none, whether or not it occurs
    categories = [entry["id"] for entry in read_table("ade20k_instance")]
    instances = []
    for number, measures in enumerate(measure_segments(numbers), 1):
        classes = np.unique(red[numbers == number])
        if len(classes) > 1 or not 1 <= classes[0] <= len(categories):
            raise ValueError(
                f"{path}: instance {green[numbers == number][0]} has the class {', '.join(map(str, classes))} (red), "
                f"expected one of 1 to {len(categories)}. Is the file of annotations_instance.tar, and undamaged?"
            )
        category = categories[classes[0] - 1]
        instances.append({"category_id": category, "isthing": True, "iscrowd": 0, **measures})
    return numbers, instances
