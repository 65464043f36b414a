"""Ground truth as pictures: what the configured dataset mapper makes of a data set."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts

from mask2former.data import check_registered
from mask2former.data.dataset_mappers import dataset_mapper_class
from mask2former.engine.config_files import with_opts
from mask2former.engine.random_state import derive_seed, isolated_rng
from mask2former.visualization import class_name, draw_ground_truth, is_thing_class, save_drawings

__all__ = ["browse", "draw_examples", "for_data_sets"]


def browse(
    cfg: CfgNode, output: Path, *, number: int = 16, seed: int = 0, augment: bool = True, sheet: bool = False
) -> bool:
    """Draw training examples of ``DATASETS.TRAIN`` to a folder, and say what each is.

    Args:
        cfg: says which mapper and which augmentations.
        output: folder, made where it does not exist. Pictures are called after their place in the data set.
        number: of examples, chosen at random.
        seed: of the choice and of the augmentations, which for an example do not depend on ``number``.
        augment: False draws images as they are.
        sheet: also write ``sheet.jpg``, all of them on one page.

    Returns:
        Whether all could be read; what is wrong with the others is told in one line each on stderr.

    Raises:
        ValueError: ``number`` is below 1.
    """
    if number < 1:
        raise ValueError(f"--number is {number}, expected at least 1.")
    errors: list[Exception] = []
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    examples = draw_examples(cfg, number, seed, augment, errors.append)
    drawings = ((name, drawing, _describe(example, metadata)) for name, drawing, example in examples)
    save_drawings(drawings, output, sheet=sheet)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return not errors


def draw_examples(
    cfg: CfgNode, number: int, seed: int, augment: bool, on_error: Callable[[Exception], None]
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Draw training examples of ``DATASETS.TRAIN``.

    Args:
        cfg, number, seed, augment: see :func:`browse`.
        on_error: gets what is wrong with an example that cannot be read.

    Yields:
        A name, the drawing (H, W, 3) uint8 RGB, and the example as the mapper made it.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    given: dict[str, Any] = {} if augment else {"augmentations": []}
    mapper = dataset_mapper_class(cfg)(cfg, is_train=True, **given)
    chosen = np.random.default_rng(seed).permutation(len(records))[:number]
    for index in sorted(chosen.tolist()):
        try:
            with isolated_rng(derive_seed(seed, index)):
                example = mapper(records[index])
        except (OSError, ValueError) as error:
            on_error(error)
            continue
        task: Any = "semantic" if "sem_seg" in example else None
        drawing = draw_ground_truth(example, metadata, image_format=cfg.INPUT.FORMAT, task=task)
        yield f"{index:06d}_{Path(example['file_name']).stem}", drawing, example


def for_data_sets(cfg: CfgNode, names: tuple[str, ...]) -> CfgNode:
    """The configuration with other data sets in ``DATASETS.TRAIN``, frozen.

    Raises:
        ValueError: one of them is not registered, or there is none.
    """
    if not names:
        raise ValueError("the configuration names no data set for this split; name one.")
    check_registered(names)
    return with_opts(cfg, ["DATASETS.TRAIN", names])


def _describe(example: dict[str, Any], metadata: Any) -> str:
    """The size of the picture and the number of its targets of each class."""
    height, width = example["image"].shape[-2:]
    classes = Counter(example["instances"].gt_classes.tolist())
    targets = [
        f"{count} {class_name(metadata, c, is_thing_class(metadata, c))}" for c, count in sorted(classes.items())
    ]
    return f"{height} x {width}, {', '.join(targets) or 'no target'}"
