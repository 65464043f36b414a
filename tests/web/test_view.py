"""The page's view of a result: what the mouse finds is what the model found."""

import base64
import html
import json
import re
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from mask2former.inference import Result
from mask2former.visualization import Task
from mask2former.web.view import find_regions, render_view

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def result() -> Result:
    """Two segments and a pixel of none; two instances that overlap, and an empty one; two of three classes."""
    ids = torch.ones(HEIGHT, WIDTH, dtype=torch.int32)
    ids[:2] = 2
    ids[5, 7] = 0
    segments = [
        {"id": 1, "isthing": False, "category_id": 1, "score": 0.75},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.5},
    ]
    masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, :3] = True
    masks[1, 2:] = True
    scores = torch.zeros(3, HEIGHT, WIDTH)
    scores[0, :4] = 1.0
    scores[2, 4:] = 1.0
    instances = Instances((HEIGHT, WIDTH), pred_masks=masks, scores=torch.tensor([0.9, 0.6, 0.5]))
    instances.pred_classes = torch.tensor([0, 0, 0])
    instances.pred_boxes = Boxes(torch.zeros(3, 4))
    metadata = Metadata(thing_classes=["<cat> & 'dog'"], stuff_classes=["<cat> & 'dog'", "grass", "sky"])
    predictions = {"panoptic_seg": (ids, segments), "instances": instances, "sem_seg": scores}
    return Result(
        np.full((HEIGHT, WIDTH, 3), 90, np.uint8), ("panoptic", "instance", "semantic"), predictions, metadata
    )


def _read(view: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Labels, and the number of each pixel, as the script reads them."""
    labels = json.loads(html.unescape(re.search(r'data-labels="([^"]*)"', view)[1]))
    png = base64.b64decode(re.search(r'm2f-numbers"[^>]*base64,([^"]+)"', view)[1])
    blue, green, red = np.moveaxis(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(int), -1, 0)
    return labels, red | green << 8 | blue << 16


def test_panoptic_segments_by_size(result: Result) -> None:
    labels, numbers = _read(render_view(result, "panoptic", find_regions(result, "panoptic")))
    assert labels == [{"name": "grass", "score": "75 %"}, {"name": "<cat> & 'dog'", "score": "50 %"}]
    assert (numbers[:2] == 2).all()
    assert (numbers[2:5] == 1).all()
    assert numbers[5, 7] == 0


def test_the_surest_instance_is_on_top_and_empty_ones_are_left_out(result: Result) -> None:
    labels, numbers = _read(render_view(result, "instance", find_regions(result, "instance")))
    assert [label["score"] for label in labels] == ["90 %", "60 %"]
    assert (numbers[:3] == 1).all()
    assert (numbers[3:] == 2).all()


def test_semantic_classes_that_are_there(result: Result) -> None:
    labels, numbers = _read(render_view(result, "semantic", find_regions(result, "semantic")))
    assert labels == [{"name": "<cat> & 'dog'", "score": ""}, {"name": "sky", "score": ""}]
    assert (numbers[:4] == 1).all()
    assert (numbers[4:] == 2).all()


def test_names_are_text_and_nothing_is_fetched(result: Result) -> None:
    view = render_view(result, "panoptic", find_regions(result, "panoptic"))
    assert "<cat>" not in view
    assert not re.search(r'(src|href)="(?!data:)', view)


def test_more_regions_than_a_byte_counts(result: Result) -> None:
    masks = torch.zeros(300, 20, 15, dtype=torch.bool)
    masks.view(300, -1)[torch.arange(300), torch.arange(300)] = True
    many = Instances((20, 15), pred_masks=masks, scores=torch.linspace(1, 0.5, 300))
    many.pred_classes = torch.zeros(300, dtype=torch.int64)
    many.pred_boxes = Boxes(torch.zeros(300, 4))
    crowded = Result(np.zeros((20, 15, 3), np.uint8), ("instance",), {"instances": many}, result.metadata)
    _, numbers = _read(render_view(crowded, "instance", find_regions(crowded, "instance")))
    assert numbers.ravel().tolist() == list(range(1, 301))


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_regions_do_not_keep_a_mask_each(task: Task, result: Result) -> None:
    ids = torch.arange(1, 51, dtype=torch.int32)[:, None].expand(50, 2000).contiguous()
    segments = [{"id": n, "isthing": True, "category_id": 0, "score": 0.5} for n in range(1, 51)]
    scores = torch.zeros(3, 50, 2000).scatter(0, (ids[None] % 3).long(), 1.0)
    large = Result(
        np.zeros((50, 2000, 3), np.uint8),
        (task,),
        {"panoptic_seg": (ids, segments), "sem_seg": scores},
        result.metadata,
    )
    find_regions(large, task)  # the result keeps what is read of it
    tracemalloc.start()
    regions = find_regions(large, task)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < ids.numel() / 2  # bytes; a mask takes one a pixel
    assert all(region.area == np.count_nonzero(region.mask()) for region in regions)
    assert sum(region.area for region in regions) == ids.numel()
