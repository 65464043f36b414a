"""The exportable post-processing gives, for each image of a batch, what the model's own gives."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.export.postprocessing import instances_of_batch, panoptic_of_batch, semantic_of_batch
from mask2former.modeling.postprocessing import (
    MaskGeometry,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)

# More queries than are resized together; classes 0, 1, 2 are things, 3 and 4 stuff.
N, Q, K = 3, 37, 5
THINGS = torch.tensor([True, True, True, False, False])
PADDED, SIZE = (64, 96), (50, 83)
GEOMETRY = MaskGeometry(padded_size=PADDED, image_size=SIZE, output_size=SIZE)


@pytest.fixture
def logits() -> Tensor:
    x = torch.randn(N, Q, K + 1) * 3
    x[2] = 0.0
    x[2, :, -1] = 9.0  # the last image has no object
    return x


@pytest.fixture
def masks() -> Tensor:
    """Smooth blobs, so that queries overlap in part."""
    x = F.interpolate(torch.randn(N, Q, 4, 6), (16, 24), mode="bicubic") * 4
    x[:, 5] = -3.0  # an empty mask
    x[2] = x[2].abs()  # each is everywhere
    return x


def test_semantic(logits: Tensor, masks: Tensor) -> None:
    scores = semantic_of_batch(logits, masks, PADDED, SIZE)
    assert scores.shape == (N, K, *SIZE)
    for index in range(N):
        torch.testing.assert_close(scores[index], semantic_inference(logits[index], masks[index], GEOMETRY))


@pytest.mark.parametrize(("object_mask_threshold", "overlap_threshold"), [(0.0, 0.0), (0.5, 0.3), (0.8, 0.3)])
def test_panoptic(logits: Tensor, masks: Tensor, object_mask_threshold: float, overlap_threshold: float) -> None:
    thresholds = {"object_mask_threshold": object_mask_threshold, "overlap_threshold": overlap_threshold}
    id_maps, ids, labels, scores = panoptic_of_batch(logits, masks, PADDED, SIZE, thing_classes=THINGS, **thresholds)
    assert id_maps.dtype == torch.int32
    shared_stuff = 0
    for index in range(N):
        expected, segments = panoptic_inference(
            logits[index], masks[index], GEOMETRY, thing_classes=THINGS.nonzero().flatten().tolist(), **thresholds
        )
        assert torch.equal(id_maps[index], expected)
        classes = dict(zip(ids[index].tolist(), labels[index].tolist(), strict=True))
        classes.pop(0, None)
        assert classes == {segment["id"]: segment["category_id"] for segment in segments}
        shared_stuff += int((ids[index] > 0).sum()) - len(segments)
        assert torch.equal(scores[index], logits[index].softmax(-1).amax(-1))
    assert not id_maps[2].any()
    assert id_maps[:2].any()
    if object_mask_threshold == 0:
        assert shared_stuff > 0, "the case that queries of one stuff class share a segment"


@pytest.mark.parametrize("things_only", [False, True])
def test_instances(logits: Tensor, masks: Tensor, things_only: bool) -> None:
    allowed = THINGS if things_only else torch.ones(K, dtype=torch.bool)
    topk = 40
    scores, classes, boxes, binary = instances_of_batch(logits, masks, PADDED, SIZE, topk=topk, allowed_classes=allowed)
    assert scores.shape == classes.shape == (N, topk)
    assert binary.shape == (N, topk, *SIZE)
    for index in range(N):
        expected = instance_inference(
            logits[index], masks[index], GEOMETRY, topk=topk, allowed_classes=allowed.nonzero().flatten().tolist()
        )
        expected = expected[expected.scores > 0]  # an empty mask has the score 0, as what is not allowed has here
        order = expected.scores.argsort(descending=True)
        found = scores[index].argsort(descending=True)[: len(expected)]
        assert (scores[index] > 0).sum() == len(expected)
        torch.testing.assert_close(scores[index][found], expected.scores[order])
        if index == 2:
            continue  # all its scores are equal, so any choice and any order is right
        assert torch.equal(classes[index][found], expected.pred_classes[order])
        assert torch.equal(boxes[index][found], expected.pred_boxes.tensor[order])
        assert torch.equal(binary[index][found], expected.pred_masks[order])
