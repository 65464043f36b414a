"""A result as a piece of HTML, whose segments tell what they are where the mouse is (``view.js``)."""

import base64
import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources

import cv2
import numpy as np

from mask2former.inference import Result
from mask2former.visualization import Task

__all__ = ["Region", "find_regions", "render_view", "view_script", "view_style"]


@dataclass(frozen=True, eq=False)
class Region:
    """What the mouse can be on.

    Attributes:
        name: of the class.
        score: 0 to 1; None where a task gives none.
        area: in pixels.
        mask: gives its pixels, (H, W) bool; one at a time, as a hundred of a photograph's would take gigabytes.
    """

    name: str
    score: float | None
    area: int
    mask: Callable[[], np.ndarray]


def find_regions(result: Result, task: Task) -> list[Region]:
    """The segments of a result, the largest first, but instances the surest first; only those that have a pixel."""
    if task == "instance":
        found = result.instances
        regions = [
            Region(name, float(score), int(np.count_nonzero(mask)), partial(np.asarray, mask))
            for name, score, mask in zip(found.names, found.scores, found.masks, strict=True)
        ]
        return [region for region in regions if region.area]
    if task == "panoptic":
        panoptic = result.panoptic
        regions = [
            Region(segment.name, segment.score, segment.area, partial(panoptic.mask, segment))
            for segment in panoptic.segments
        ]
    else:
        semantic = result.semantic
        labels, areas = np.unique(semantic.labels, return_counts=True)
        regions = [
            Region(semantic.names[label], None, int(area), partial(np.equal, semantic.labels, label))
            for label, area in zip(labels, areas, strict=True)
        ]
    return sorted(regions, key=lambda region: -region.area)


def render_view(result: Result, task: Task, regions: list[Region]) -> str:
    """HTML without references to anything outside: the drawing, a picture of numbers for the mouse, and a table."""
    numbers = np.zeros(result.size, np.int32)
    for number in range(len(regions), 0, -1):  # where regions overlap, the first is on top
        numbers[regions[number - 1].mask()] = number
    channels = np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], axis=-1).astype(np.uint8)  # RGB
    labels = [{"name": region.name, "score": _percent(region.score)} for region in regions]
    rows = [
        f'<tr data-number="{number}"><td>{html.escape(region.name)}</td><td>{_percent(region.score)}</td>'
        f"<td>{region.area}</td></tr>"
        for number, region in enumerate(regions, start=1)
    ]
    drawing = _data_uri(result.draw(task=task), ".jpg")
    return (
        f'<div class="m2f-view" data-labels="{html.escape(json.dumps(labels))}">'
        f'<div class="m2f-tip" role="status"></div>'
        f'<div class="m2f-stage" style="--aspect: {result.size[1] / result.size[0]:.4f}">'
        f'<img class="m2f-drawing" alt="the picture with its segments" src="{drawing}">'
        f'<img class="m2f-numbers" alt="" src="{_data_uri(channels, ".png")}"><canvas class="m2f-shade"></canvas></div>'
        f"<table><thead><tr><th>class</th><th>score</th><th>pixels</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def view_script() -> str:
    """JavaScript that shows a region's class and score under the mouse; ``element`` holds the view."""
    return resources.files(__package__).joinpath("view.js").read_text("utf-8")


def view_style() -> str:
    """CSS of the view."""
    return resources.files(__package__).joinpath("view.css").read_text("utf-8")


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.0f} %"


def _data_uri(rgb: np.ndarray, suffix: str) -> str:
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]))
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
