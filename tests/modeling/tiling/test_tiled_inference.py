"""Tiles of an image give what the whole image gives, where a network sees the same in both."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.postprocessing import MaskGeometry, instance_inference, panoptic_inference, semantic_inference
from mask2former.modeling.tiling import TiledInference, instances_of_patches, panoptic_of_patches
from mask2former.modeling.tiling.merging import MaskPatch, Piece, merge_pieces
from mask2former.modeling.tiling.rendering import Canvas
from mask2former.modeling.tiling.tiles import plan_tiles

STRIDE = 4
QUERIES = 40


def _network(images: Tensor) -> dict[str, Tensor]:
    """A perfect one for bright squares on black: a query for each region (class 0), the last for the rest."""
    logits = torch.full((len(images), QUERIES, 3), -9.0)
    masks = torch.full((len(images), QUERIES, images.shape[-2] // STRIDE, images.shape[-1] // STRIDE), -8.0)
    logits[:, :, 2] = 9  # "no object"
    for image, image_logits, image_masks in zip(images, logits, masks, strict=True):
        bright = F.avg_pool2d(image[:1], STRIDE)[0] > 0.5
        regions, count = ndimage.label(bright.numpy())
        assert count < QUERIES
        for region in range(1, count + 1):
            image_logits[region - 1] = torch.tensor([6.0, -6.0, -6.0])
            image_masks[region - 1][torch.from_numpy(regions == region)] = 8
        image_logits[-1] = torch.tensor([-6.0, 6.0, -6.0])
        image_masks[-1][~bright] = 8
    return {"pred_logits": logits, "pred_masks": masks}


def _scene(height: int, width: int, count: int, side: int, seed: int) -> Tensor:
    """Bright squares that do not touch, on whole cells."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width)
    for _ in range(count):
        top, left = (
            int(torch.randint(0, (length - side) // STRIDE + 1, (), generator=generator)) * STRIDE
            for length in (height, width)
        )
        around = image[0, max(top - STRIDE, 0) : top + side + STRIDE, max(left - STRIDE, 0) : left + side + STRIDE]
        if not around.any():
            image[:, top : top + side, left : left + side] = 1
    return image


@pytest.mark.parametrize(
    ("size", "output", "side"),
    [
        ((128, 128), (128, 128), 12),
        ((100, 180), (50, 90), 16),
        ((96, 288), (150, 333), 24),
        # Larger than the overlap: cut by every tile that sees them.
        ((192, 192), (192, 192), 56),
    ],
)
def test_objects_across_seams_are_found_once_and_whole(
    size: tuple[int, int], output: tuple[int, int], side: int
) -> None:
    image = _scene(*size, count=25, side=side, seed=side)
    padded = tuple(-(-length // 32) * 32 for length in size)
    whole = _network(F.pad(image, (0, padded[1] - size[1], 0, padded[0] - size[0]))[None])
    logits, masks = whole["pred_logits"][0], whole["pred_masks"][0]
    geometry = MaskGeometry(padded, size, output)
    tiled = TiledInference(tile_size=64, overlap=32, size_divisibility=32, batch_size=3)
    prediction = tiled(_network, image, output, thing_classes={0})
    rules: dict[str, Any] = {"thing_classes": {0}, "object_mask_threshold": 0.5, "overlap_threshold": 0.5}

    expected, expected_segments = panoptic_inference(logits, masks, geometry, **rules)
    found, segments = panoptic_of_patches(prediction.patches, prediction.canvas, **rules)
    assert len(expected_segments) > 3
    assert sorted(s["category_id"] for s in segments) == sorted(s["category_id"] for s in expected_segments)
    _assert_same_regions(found, expected)

    wanted = instance_inference(logits, masks, geometry, topk=30, allowed_classes={0})
    wanted = wanted[wanted.scores > 0.5]
    choice: dict[str, Any] = {"topk": 60, "allowed_classes": {0}}
    instances = instances_of_patches(prediction.patches, prediction.canvas, **choice)
    probable = instances_of_patches(prediction.patches, prediction.canvas, **choice, least_probability=0.5)
    assert len(probable) < len(instances)
    instances, probable = (x[x.scores > 0.5] for x in (instances, probable))
    assert torch.equal(probable.pred_masks, instances.pred_masks)
    assert torch.equal(probable.scores, instances.scores)
    assert len(instances) == len(wanted)
    order, expected_order = (boxes.pred_boxes.tensor.sum(1).argsort() for boxes in (instances, wanted))
    agree = instances.pred_masks[order] == wanted.pred_masks[expected_order]
    assert agree.flatten(1).float().mean(1).min() > 0.99
    assert torch.allclose(instances.scores[order], wanted.scores[expected_order], atol=0.02)

    assert prediction.sem_seg is not None
    scores = semantic_inference(logits, masks, geometry)
    assert (prediction.sem_seg.argmax(0) == scores.argmax(0)).float().mean() > 0.99


def _assert_same_regions(found: Tensor, expected: Tensor) -> None:
    """Equal up to the numbers of segments and a pixel at their edges, where resizing twice and once differ."""
    partners = []
    for segment in expected.unique():
        mask = expected == segment
        partner = found[mask].mode().values
        same = found == partner
        assert (mask & same).sum() > 0.9 * (mask | same).sum()
        partners.append(int(partner))
    assert len(set(partners)) == len(partners)


def test_what_tiles_agree_on_is_exact() -> None:
    """Constant logits and scores come out of the averages as they went in."""
    tiled = TiledInference(tile_size=64, overlap=32, size_divisibility=32)

    def network(images: Tensor) -> dict[str, Tensor]:
        count = len(images)
        masks = torch.full((count, 1, 16, 16), 1.25)
        return {"pred_logits": torch.tensor([2.0, 1.0, 0.0]).expand(count, 1, 3), "pred_masks": masks}

    prediction = tiled(network, torch.zeros(3, 100, 150), (100, 150), thing_classes={1})
    (patch,) = prediction.patches
    area, logits = prediction.canvas.draw(patch)
    assert area == (slice(0, 100), slice(0, 150))
    assert torch.allclose(logits, torch.tensor(1.25), rtol=0, atol=1e-6)
    assert torch.allclose(patch.probabilities, torch.tensor([2.0, 1.0, 0.0]).softmax(0))
    assert prediction.sem_seg is not None
    expected = torch.tensor([2.0, 1.0, 0.0]).softmax(0)[:2] * torch.tensor(1.25).sigmoid()
    assert torch.allclose(prediction.sem_seg, expected[:, None, None].expand(2, 100, 150), rtol=0, atol=1e-6)


def test_a_whole_patch_is_drawn_as_interpolate_does() -> None:
    logits = torch.randn(10, 14)
    canvas = Canvas(grid_size=(10, 14), image_size=(40, 56), output_size=(93, 131), stride=4)
    area, drawn = canvas.draw(MaskPatch(torch.ones(2), 0, 0, logits))
    assert area == (slice(0, 93), slice(0, 131))
    expected = F.interpolate(logits[None, None], (93, 131), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(drawn, expected, atol=1e-4)


def test_a_patch_is_drawn_in_its_place() -> None:
    """As if the rest of the canvas were surely empty."""
    logits = torch.full((12, 12), -20.0)
    logits[3:7, 5:12] = torch.randn(4, 7) + 3
    canvas = Canvas(grid_size=(12, 12), image_size=(45, 47), output_size=(45, 47), stride=4)
    (rows, columns), drawn = canvas.draw(MaskPatch(torch.ones(2), 3, 5, logits[3:7, 5:12]))
    expected = F.interpolate(logits[None, None], (48, 48), mode="bilinear", align_corners=False)[0, 0, :45, :47]
    assert torch.allclose(drawn, expected[rows, columns], atol=1e-4)
    expected[rows, columns] = -20
    assert torch.equal(expected, torch.full_like(expected, -20))


def _piece(tile: int, columns: slice, label: int = 0) -> Piece:
    logits = torch.full((16, 16), -8.0)
    logits[4:8, columns] = 8
    probabilities = torch.tensor([0.05, 0.05, 0.0])
    probabilities[label] = 0.9
    return Piece(tile, probabilities, logits)


def test_pieces_of_one_object_are_joined() -> None:
    tiles = [tile.scaled(4) for tile in plan_tiles((64, 96), 64, 32, 32)]  # columns 0..15 and 8..23
    patches = merge_pieces([_piece(0, slice(6, 16)), _piece(1, slice(0, 6))], tiles, thing_classes={0, 1})
    (patch,) = patches
    inside = (patch.logits > 0).nonzero() + torch.tensor([patch.top, patch.left])
    assert inside.amin(0).tolist() == [4, 6]
    assert inside.amax(0).tolist()[0] == 7
    # Both tiles doubt each other's edge; the window decides: half way through the overlap.
    assert 11 <= inside.amax(0).tolist()[1] <= 14


def test_other_classes_and_other_places_stay_apart() -> None:
    tiles = [tile.scaled(4) for tile in plan_tiles((64, 96), 64, 32, 32)]
    same_place = [_piece(0, slice(9, 12), label=0), _piece(1, slice(2, 5), label=1)]  # columns 9..11 and 10..12
    labels = [int(patch.probabilities.argmax()) for patch in merge_pieces(same_place, tiles, thing_classes={0, 1})]
    # The middle of the overlap is column 12: the first tile sees more of what is at its left, the second at its right.
    assert labels == [0]
    apart = [_piece(0, slice(2, 5)), _piece(1, slice(11, 14))]
    assert len(merge_pieces(apart, tiles, thing_classes={0, 1})) == 2


def test_stuff_of_a_class_is_one_segment() -> None:
    tiles = [tile.scaled(4) for tile in plan_tiles((64, 96), 64, 32, 32)]
    pieces = [_piece(0, slice(0, 4), label=1), _piece(0, slice(6, 8), label=1), _piece(1, slice(10, 16), label=1)]
    (patch,) = merge_pieces(pieces, tiles, thing_classes={0})
    columns = (patch.logits > 0).any(0).nonzero().flatten() + patch.left
    assert columns.tolist() == [0, 1, 2, 3, 6, 7, 18, 19, 20, 21, 22, 23]


def test_nothing_found() -> None:
    canvas = Canvas(grid_size=(8, 8), image_size=(32, 32), output_size=(20, 30), stride=4)
    assert merge_pieces([], plan_tiles((8, 8), 8, 4, 4), thing_classes={0}) == []
    ids, segments = panoptic_of_patches([], canvas, thing_classes={0}, object_mask_threshold=0.5, overlap_threshold=0.5)
    assert ids.shape == (20, 30)
    assert ids.dtype == torch.int32
    assert not ids.any()
    assert segments == []
    instances = instances_of_patches([], canvas, topk=5)
    assert instances.pred_masks.shape == (0, 20, 30)
    assert instances.pred_boxes.tensor.shape == (0, 4)


def test_nothing_found_is_on_the_device_of_the_image() -> None:
    def network(images: Tensor) -> dict[str, Tensor]:
        masks = torch.zeros(len(images), 1, 16, 16, device=images.device)
        return {"pred_logits": torch.zeros(len(images), 1, 3, device=images.device), "pred_masks": masks}

    image = torch.zeros(3, 64, 64, device="meta")
    inference = TiledInference(64, 32, 32)
    canvas = inference(network, image, (64, 64), thing_classes={0}, with_segments=False, with_semantic=False).canvas
    ids, _ = panoptic_of_patches([], canvas, thing_classes={0}, object_mask_threshold=0.5, overlap_threshold=0.5)
    instances = instances_of_patches([], canvas, topk=5)
    found = [ids, instances.pred_masks, instances.pred_boxes.tensor, instances.scores, instances.pred_classes]
    assert [tensor.device.type for tensor in found] == ["meta"] * 5


def test_the_model_segments_large_images_in_tiles(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE = 64
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_OVERLAP = 32
    model = build_model(tiny_cfg).eval()
    small = torch.rand(3, 60, 64) * 255
    with torch.no_grad():
        large, one = model([{"image": torch.rand(3, 90, 130) * 255, "height": 45, "width": 65}, {"image": small}])
        model.tiled_inference = None
        untiled = model([{"image": small}])[0]
    assert large["sem_seg"].shape == (3, 45, 65)
    assert large["panoptic_seg"][0].shape == (45, 65)
    assert large["instances"].pred_masks.shape[1:] == (45, 65)
    # An image that fits into one tile is not changed by all this, but for the order of instances.
    assert torch.allclose(one["sem_seg"], untiled["sem_seg"], atol=1e-3)


def test_each_task_alone_in_tiles(tiny_cfg: CfgNode) -> None:
    test = tiny_cfg.MODEL.MASK_FORMER.TEST
    test.TILE_SIZE, test.TILE_OVERLAP, test.OBJECT_MASK_THRESHOLD, test.OVERLAP_THRESHOLD = 64, 32, 0.0, 0.0
    model = build_model(tiny_cfg).eval()
    entry = {"image": torch.rand(3, 90, 130) * 255}
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.bias[-1] = -9  # no query is "no object"
        together = model([entry])[0]
        model.semantic_on, model.instance_on = False, False
        panoptic = model([entry])[0]
        model.panoptic_on, model.instance_on = False, True
        instance = model([entry])[0]
        model.instance_on, model.semantic_on = False, True
        semantic = model([entry])[0]
    assert [list(result) for result in (panoptic, instance, semantic)] == [["panoptic_seg"], ["instances"], ["sem_seg"]]
    assert panoptic["panoptic_seg"][1]
    assert panoptic["panoptic_seg"][1] == together["panoptic_seg"][1]
    assert torch.equal(panoptic["panoptic_seg"][0], together["panoptic_seg"][0])
    assert torch.equal(instance["instances"].scores, together["instances"].scores)
    assert torch.equal(semantic["sem_seg"], together["sem_seg"])


@pytest.mark.parametrize("by_size", [False, True])
def test_images_that_fit_into_a_tile_are_segmented_whole(tiny_cfg: CfgNode, by_size: bool) -> None:
    """In a batch with larger ones too: enlarged to a tile, they would get another result than alone."""
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE = 128
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_OVERLAP = 64
    tiny_cfg.MODEL.MASK_FORMER.TEST.BATCH_BY_SIZE = by_size
    model = build_model(tiny_cfg).eval()
    small, large, same = ({"image": torch.rand(3, *size) * 255} for size in ((60, 64), (90, 200), (50, 61)))
    with torch.no_grad():
        alone = [model([entry])[0] for entry in (small, large, same)]
        together = model([small, large, same])
    for result, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(result["sem_seg"], expected["sem_seg"])
        assert torch.equal(result["panoptic_seg"][0], expected["panoptic_seg"][0])
        torch.testing.assert_close(result["instances"].scores.sort().values, expected["instances"].scores.sort().values)


def test_tiles_that_the_network_cannot_align_are_an_error(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE = 100
    tiny_cfg.MODEL.MASK_FORMER.TEST.TILE_OVERLAP = 50
    with pytest.raises(ValueError, match=r"tiles of 100 pixels that overlap by 50.*multiples of 32"):
        build_model(tiny_cfg)
