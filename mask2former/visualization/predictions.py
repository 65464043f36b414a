"""Draw what the model says, or what the annotations say: the functions that others call."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np

from mask2former.visualization.drawing import draw_segments
from mask2former.visualization.segments import Segment, crop_segment, is_thing_class

__all__ = ["Task", "draw_ground_truth", "draw_instances", "draw_panoptic", "draw_predictions", "draw_semantic"]

Task = Literal["panoptic", "instance", "semantic"]
_OUTPUT_KEYS: dict[Task, str] = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}


def draw_predictions(
    image: np.ndarray,
    predictions: Mapping[str, Any],
    metadata: Any = None,
    *,
    threshold: float = 0.5,
    task: Task | None = None,
) -> np.ndarray:
    """Draw the model's output for one picture.

    Args:
        image: (H, W, 3) uint8 RGB, or gray (H, W).
        predictions: "panoptic_seg", "instances" or "sem_seg" as the model gives them, at the picture's size.
        metadata: Detectron2's metadata of the data set (names and colours of classes), or None.
        threshold: instances with a lower score are left out. Panoptic segments are drawn as the model kept them.
        task: which result to draw; None takes the first that is there, in the order panoptic, instance, semantic.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the result asked for is not there.
    """
    present: list[Task] = [name for name, key in _OUTPUT_KEYS.items() if key in predictions]
    if not present or (task is not None and task not in present):
        raise ValueError(
            f"no {task or 'drawable'} result among the predictions {sorted(predictions)}; "
            "turn on MODEL.MASK_FORMER.TEST.PANOPTIC_ON, INSTANCE_ON or SEMANTIC_ON"
        )
    task = task or present[0]
    if task == "panoptic":
        panoptic_seg, segments_info = predictions["panoptic_seg"]
        return draw_panoptic(image, panoptic_seg, segments_info, metadata)
    if task == "semantic":
        return draw_semantic(image, _to_numpy(predictions["sem_seg"].argmax(0)), metadata)
    instances = predictions["instances"]
    instances = instances[instances.scores >= threshold]
    return draw_instances(image, instances.pred_masks, instances.pred_classes, instances.scores, metadata)


def draw_panoptic(
    image: np.ndarray, panoptic_seg: Any, segments_info: Iterable[Mapping[str, Any]], metadata: Any = None
) -> np.ndarray:
    """Draw a panoptic segmentation.

    Args:
        image: (H, W, 3) uint8 RGB, or gray (H, W).
        panoptic_seg: (H, W) map of segment ids, array or tensor.
        segments_info: "id", "category_id" (contiguous), "isthing" and, if known, "score" of each segment to draw.
        metadata: names and colours of classes, or None.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    ids = _fitting(panoptic_seg, image).astype(np.int32)
    segments = [
        crop_segment(_equal(ids, info["id"]), info["category_id"], info["isthing"], info.get("score"))
        for info in segments_info
    ]
    return draw_segments(image, _present(segments), metadata)


def draw_instances(
    image: np.ndarray, masks: Any, classes: Sequence[int], scores: Sequence[float] | None = None, metadata: Any = None
) -> np.ndarray:
    """Draw instances, which may overlap.

    Args:
        image: (H, W, 3) uint8 RGB, or gray (H, W).
        masks: (N, H, W) bool, array, tensor or Detectron2's BitMasks.
        classes: (N,) contiguous thing classes.
        scores: (N,) in 0..1, written beside the names; None for annotations.
        metadata: names of classes, or None.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    masks = _fitting(_bitmasks(masks), image)
    given = [None] * len(masks) if scores is None else [float(score) for score in scores]
    segments = [
        crop_segment(mask, int(class_id), True, score)
        for mask, class_id, score in zip(masks, classes, given, strict=True)
    ]
    return draw_segments(image, _present(segments), metadata)


def draw_semantic(image: np.ndarray, labels: Any, metadata: Any = None) -> np.ndarray:
    """Draw a semantic segmentation.

    Args:
        image: (H, W, 3) uint8 RGB, or gray (H, W).
        labels: (H, W) map of classes, array or tensor; the metadata's ignore_label (255 if it has none) and negative
            numbers stay undrawn.
        metadata: names and colours of classes, or None.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    labels = _fitting(labels, image).astype(np.int32)
    ignored = getattr(metadata, "ignore_label", 255)
    classes = [int(label) for label in np.unique(labels) if label >= 0 and label != ignored]
    segments = [crop_segment(_equal(labels, label), label, False) for label in classes]
    return draw_segments(image, _present(segments), metadata)


def draw_ground_truth(
    inputs: Mapping[str, Any], metadata: Any = None, *, image_format: str = "RGB", task: Task | None = None
) -> np.ndarray:
    """Draw one training example as the model receives it, augmentation included.

    Args:
        inputs: what a dataset mapper returns: "image" (C, H, W) with "instances" (gt_masks, gt_classes), "sem_seg" or
            both.
        metadata: names and colours of classes, or None.
        image_format: order of the image's channels, INPUT.FORMAT: "RGB", "BGR" or "L".
        task: "semantic" draws "sem_seg"; otherwise that is drawn only where there are no "instances".

    Returns:
        (H, W, 3) uint8 RGB.
    """
    image = _to_numpy(inputs["image"]).transpose(1, 2, 0)
    image = np.clip(image[..., ::-1] if image_format == "BGR" else image, 0, 255).astype(np.uint8)
    if "instances" not in inputs or task == "semantic":
        return draw_semantic(image, inputs["sem_seg"], metadata)
    masks = _fitting(_bitmasks(inputs["instances"].gt_masks), image)
    classes = inputs["instances"].gt_classes.tolist()
    segments = [crop_segment(mask, c, is_thing_class(metadata, c)) for mask, c in zip(masks, classes, strict=True)]
    return draw_segments(image, _present(segments), metadata)


def _bitmasks(masks: Any) -> np.ndarray:
    """Masks in any of the accepted forms as an array: (N, H, W) bool."""
    return _to_numpy(getattr(masks, "tensor", masks)).astype(bool, copy=False)


def _equal(ids: np.ndarray, value: int) -> np.ndarray:
    """``ids == value`` for (H, W) int32, several times faster: (H, W) uint8, 255 where equal."""
    bound = np.array([value])
    return np.asarray(cv2.inRange(ids, bound, bound))


def _present(segments: Iterable[Segment | None]) -> list[Segment]:
    return [segment for segment in segments if segment is not None]


def _fitting(maps: Any, image: np.ndarray) -> np.ndarray:
    """Maps (..., H, W) as an array, after a check that they are of the picture's size."""
    maps = _to_numpy(maps)
    if maps.shape[-2:] != image.shape[:2]:
        raise ValueError(
            f"the picture is {image.shape[:2]} (height, width) but its segmentation is {maps.shape[-2:]}; "
            "resize one of them, or give the model the picture's height and width"
        )
    return maps


def _to_numpy(values: Any) -> np.ndarray:
    """A tensor on any device, or anything NumPy understands, as an array."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
