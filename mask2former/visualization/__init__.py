"""Drawings of segmentations that keep the photograph visible. Needs NumPy, OpenCV and Pillow, nothing of the model."""

from mask2former.visualization.colors import spread_palette
from mask2former.visualization.files import save_drawings
from mask2former.visualization.predictions import (
    Task,
    draw_ground_truth,
    draw_instances,
    draw_panoptic,
    draw_predictions,
    draw_semantic,
)
from mask2former.visualization.segments import class_name, is_thing_class
from mask2former.visualization.sheet import contact_sheet

__all__ = [
    "Task",
    "class_name",
    "contact_sheet",
    "draw_ground_truth",
    "draw_instances",
    "draw_panoptic",
    "draw_predictions",
    "draw_semantic",
    "is_thing_class",
    "save_drawings",
    "spread_palette",
]
