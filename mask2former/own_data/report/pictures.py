"""Predictions beside the truth, as pictures that a page carries in itself."""

import base64
import io
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from mask2former.data import read_image
from mask2former.own_data.report.segments import Segments
from mask2former.visualization.drawing import draw_segments
from mask2former.visualization.segments import crop_segment

__all__ = ["draw_pair"]

_LONGER_EDGE = 560


def draw_pair(file_name: str, predicted: Segments, true: Segments, metadata: Any) -> tuple[str, str]:
    """Draw an image with what was predicted, and with what is true.

    Returns:
        Two ``data:`` addresses of JPEGs.
    """
    image = read_image(file_name)
    scale = min(1.0, _LONGER_EDGE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))  # width, height
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    return (
        _address(_draw(small, predicted, things, metadata)),
        _address(_draw(small, true, things, metadata)),
    )


def _draw(image: np.ndarray, segments: Segments, things: set[int], metadata: Any) -> np.ndarray:
    height, width = image.shape[:2]
    cut = []
    for mask, class_id, score, crowd in zip(
        segments.masks, segments.classes, segments.scores, segments.crowds, strict=True
    ):
        if not crowd:
            small = cv2.resize(mask_util.decode(mask), (width, height), interpolation=cv2.INTER_NEAREST)
            cut.append(crop_segment(small, class_id, class_id in things, score))
    return draw_segments(image, [segment for segment in cut if segment is not None], metadata)


def _address(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
