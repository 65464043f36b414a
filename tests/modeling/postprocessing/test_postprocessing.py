"""Post-processing against a naive loop over queries, on random masks."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.modeling.postprocessing import (
    ClassScores,
    MaskGeometry,
    instance,
    instance_inference,
    masks_to_boxes,
    panoptic,
    panoptic_inference,
    semantic,
    semantic_inference,
)
from mask2former.ops._library import load_library

THINGS = {0, 1}


@pytest.fixture(params=["native", "pytorch"], autouse=True)
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here is true of the native operators and of PyTorch's."""
    if request.param == "pytorch":
        for module in (instance, panoptic, semantic):
            monkeypatch.setattr(module, "has_native_masks", lambda *tensors: False)
    elif not load_library():
        pytest.skip("the native library is not built (python -m mask2former.ops.build)")
    return str(request.param)


def _random_case(seed: int) -> tuple[Tensor, Tensor, MaskGeometry]:
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    queries, classes = integer(1, 40), integer(1, 6)
    logits = 4 * torch.randn(queries, classes + 1, generator=generator)
    coarse = 4 * torch.randn(queries, 3, 4, generator=generator) - 1
    masks = F.interpolate(coarse[None], size=(8, 10), mode="bicubic")[0]
    output = (integer(5, 60), integer(5, 60))
    return logits, masks, MaskGeometry(padded_size=(32, 40), image_size=(30, 33), output_size=output)


def _resize(masks: Tensor, geometry: MaskGeometry) -> Tensor:
    masks = F.interpolate(masks[None], size=geometry.padded_size, mode="bilinear", align_corners=False)
    height, width = geometry.image_size
    masks = masks[:, :, :height, :width]
    return F.interpolate(masks, size=geometry.output_size, mode="bilinear", align_corners=False)[0]


def _naive_panoptic(
    logits: Tensor, masks: Tensor, mask_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[dict[str, Any]]]:
    num_classes = logits.shape[1] - 1
    probabilities = logits.softmax(-1)
    result = torch.zeros(masks.shape[1:], dtype=torch.int32)
    kept = [
        (float(row.max()), int(row.argmax()), mask.sigmoid())
        for row, mask in zip(probabilities, masks, strict=True)
        if int(row.argmax()) != num_classes and float(row.max()) > mask_threshold
    ]
    segments: list[dict[str, Any]] = []
    if not kept:
        return result, segments
    owner = torch.stack([score * mask for score, _, mask in kept]).argmax(0)
    stuff: dict[int, int] = {}
    for index, (_, label, mask) in enumerate(kept):
        own = mask >= 0.5
        segment = (owner == index) & own
        if own.sum() == 0 or segment.sum() == 0:
            continue
        if int((owner == index).sum()) / int(own.sum()) < overlap_threshold:
            continue
        if label not in THINGS and label in stuff:
            result[segment] = stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in THINGS, "category_id": label})
        result[segment] = len(segments)
        if label not in THINGS:
            stuff[label] = len(segments)
    return result, segments


@pytest.mark.parametrize("seed", range(100))
def test_all_tasks_equal_naive_loops(seed: int) -> None:
    logits, masks, geometry = _random_case(seed)
    resized = _resize(masks, geometry)
    probabilities = logits.softmax(-1)[:, :-1]

    semantic = semantic_inference(logits, masks, geometry)
    assert torch.allclose(semantic, torch.einsum("qk,qhw->khw", probabilities, resized.sigmoid()), atol=1e-5)

    arguments = {"thing_classes": THINGS, "object_mask_threshold": 0.4, "overlap_threshold": 0.5}
    ids, segments = panoptic_inference(logits, masks, geometry, **arguments)
    expected_ids, expected_segments = _naive_panoptic(logits, resized, 0.4, 0.5)
    assert torch.equal(ids, expected_ids)
    assert segments == expected_segments

    topk = 1 + seed % 45  # often more than there are pairs
    instances = instance_inference(logits, masks, geometry, topk=topk)
    _, pairs = probabilities.flatten().topk(min(topk, probabilities.numel()), sorted=False)
    assert len(instances) == len(pairs)
    for row, pair in enumerate(pairs.tolist()):
        query, label = divmod(pair, probabilities.shape[1])
        mask = resized[query] > 0
        sureness = (resized[query].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        assert torch.equal(instances.pred_masks[row], mask)
        assert instances.pred_boxes.tensor[row].tolist() == _naive_box(mask)
        assert instances.pred_classes[row] == label
        assert torch.isclose(instances.scores[row], probabilities[query, label] * sureness, atol=1e-6)


def _naive_box(mask: Tensor) -> list[float]:
    pixels = [(x, y) for y, row in enumerate(mask.tolist()) for x, inside in enumerate(row) if inside]
    if not pixels:
        return [0, 0, 0, 0]
    columns, rows = zip(*pixels, strict=True)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def test_no_queries_and_none_that_is_sure() -> None:
    geometry = MaskGeometry(padded_size=(32, 32), image_size=(30, 20), output_size=(15, 10))
    nothing = torch.full((4, 4), -9.0)
    nothing[:, -1] = 9  # "no object"
    for logits in (torch.zeros(0, 4), nothing):
        masks = torch.randn(len(logits), 8, 8)
        ids, segments = panoptic_inference(
            logits, masks, geometry, thing_classes=THINGS, object_mask_threshold=0.0, overlap_threshold=0.0
        )
        assert (ids.shape, ids.dtype, int(ids.abs().max()), segments) == ((15, 10), torch.int32, 0, [])
        assert semantic_inference(logits, masks, geometry).shape == (3, 15, 10)
    instances = instance_inference(torch.zeros(0, 4), torch.zeros(0, 8, 8), geometry, topk=5)
    assert (len(instances), instances.pred_masks.shape) == (0, (0, 15, 10))
    assert len(instance_inference(nothing, torch.randn(4, 8, 8), geometry, topk=0)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finished_in_float32(dtype: torch.dtype) -> None:
    logits, masks, geometry = _random_case(5)
    logits, masks = logits.to(dtype), masks.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        semantic = semantic_inference(logits, masks, geometry)
        instances = instance_inference(logits, masks, geometry, topk=5)
    assert semantic.dtype == instances.scores.dtype == torch.float32
    torch.testing.assert_close(semantic, semantic_inference(logits.float(), masks.float(), geometry))
    expected = instance_inference(logits.float(), masks.float(), geometry, topk=5)
    assert torch.equal(instances.pred_masks, expected.pred_masks)
    torch.testing.assert_close(instances.scores, expected.scores)


class _Conversions(TorchDispatchMode):
    """Counts conversions of bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].dtype == torch.bfloat16
        return func(*args, **kwargs or {})


class _LargestFloats(TorchDispatchMode):
    """Watches every operation for the largest floating-point tensor that it makes, in numbers."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        floats = [x.numel() for x in made if isinstance(x, Tensor) and x.is_floating_point()]
        self.largest = max([self.largest, *floats])
        return result


@pytest.mark.parametrize("sure_queries", [3, 200])
def test_few_masks_of_the_output_s_size_exist_at_a_time(sure_queries: int, operators: str) -> None:
    logits = torch.full((200, 6), -9.0)
    logits[:sure_queries, 0] = 9
    logits[sure_queries:, -1] = 9
    masks, size = torch.randn(200, 4, 4), (64, 64)
    geometry = MaskGeometry(padded_size=size, image_size=size, output_size=size)
    at_once = min(sure_queries, 16) * 64 * 64
    with _LargestFloats() as panoptic:
        panoptic_inference(logits, masks, geometry, thing_classes={0}, object_mask_threshold=0.5, overlap_threshold=0.0)
    with _LargestFloats() as instance:
        instance_inference(logits, masks, geometry, topk=sure_queries)
    with _LargestFloats() as semantic:
        semantic_inference(logits, masks, geometry)
    if operators == "native":
        assert max(panoptic.largest, instance.largest) <= masks.numel()
        assert semantic.largest == 200 * 64 * 64  # some rows of all queries; here that is all rows
    else:
        assert panoptic.largest == instance.largest == at_once
        assert semantic.largest == 16 * 64 * 64  # every query counts there


def test_some_rows_of_all_queries_exist_at_a_time(operators: str) -> None:
    if operators == "pytorch":
        pytest.skip("there it is all rows of some queries")
    masks, size = torch.randn(200, 4, 4), (300, 100)
    with _LargestFloats() as semantic:
        semantic_inference(torch.randn(200, 6), masks, MaskGeometry(size, size, size))
    assert 5 * 300 * 100 < semantic.largest <= 2**20 < 200 * 300 * 100
    geometry = MaskGeometry(size, size, (30, 10))  # of a picture that the network sees enlarged
    with _LargestFloats() as semantic:
        semantic_inference(torch.randn(200, 6), masks, geometry, resize_before_inference=False)
    assert semantic.largest <= 2**20 + 200 * 20 * 100  # and the rows that neighbouring bands share


def test_panoptic_scores_are_those_of_the_surest_query() -> None:
    """Two queries of stuff become one segment; a thing keeps its own; what is dropped counts nowhere."""
    probabilities = torch.tensor(
        [[0.1, 0.1, 0.6, 0.2], [0.1, 0.1, 0.75, 0.05], [0.9, 0.0, 0.0, 0.1], [0.0, 0.0, 0.95, 0.05]]
    )
    masks = torch.full((4, 8, 8), -9.0)
    masks[0, :, :4] = masks[1, :, 4:6] = masks[2, :, 6:] = 9.0
    masks[3, 0, 0] = -8.0  # sure of its class, but without a pixel of its own
    geometry = MaskGeometry(padded_size=(8, 8), image_size=(8, 8), output_size=(8, 8))
    arguments = {"thing_classes": THINGS, "object_mask_threshold": 0.5, "overlap_threshold": 0.0}
    with_scores = panoptic_inference(probabilities.log(), masks, geometry, with_scores=True, **arguments)[1]
    without = panoptic_inference(probabilities.log(), masks, geometry, **arguments)[1]
    assert [segment.pop("score") for segment in with_scores] == pytest.approx([0.75, 0.9])
    assert (
        with_scores
        == without
        == [
            {"id": 1, "isthing": False, "category_id": 2},
            {"id": 2, "isthing": True, "category_id": 0},
        ]
    )


def test_semantic_before_inference_resizes_scores() -> None:
    logits, masks, geometry = _random_case(1)
    padded = F.interpolate(masks[None], size=geometry.padded_size, mode="bilinear")[0].sigmoid()
    scores = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], padded)[:, :30, :33]
    expected = F.interpolate(scores[None], size=geometry.output_size, mode="bilinear")[0]
    actual = semantic_inference(logits, masks, geometry, resize_before_inference=False)
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("band", [1, 500, 2**20])
@pytest.mark.parametrize("resize_first", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_class_scores_and_their_highest(
    seed: int, resize_first: bool, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, masks, geometry = _random_case(seed)
    expected = semantic_inference(logits, masks, geometry, resize_before_inference=resize_first)
    monkeypatch.setattr(semantic, "_BAND", band)  # from a row at a time on
    torch.testing.assert_close(
        semantic_inference(logits, masks, geometry, resize_before_inference=resize_first), expected
    )

    scores = ClassScores(logits, masks, geometry, resize_first)
    assert (scores.shape, scores.dtype) == (expected.shape, torch.float32)
    torch.testing.assert_close(scores.full(), expected)
    classes = scores.argmax(dim=0)
    assert (classes.shape, classes.dtype) == (geometry.output_size, torch.int64)
    # But for pixels of which two classes are equally sure.
    torch.testing.assert_close(expected.gather(0, classes[None])[0], expected.amax(0))


def test_class_scores_are_a_tensor_to_everyone() -> None:
    scores = ClassScores(*_random_case(2))
    full = scores.full()
    assert type(full) is Tensor
    assert torch.equal(scores[0], full[0])
    assert torch.equal(scores + 1, full + 1)
    assert torch.equal(torch.argmax(scores, 0), full.argmax(0))
    assert torch.equal(scores.argmax(), full.argmax())
    assert torch.equal(scores.argmax(1), full.argmax(1))
    assert torch.equal(scores.argmax(0, keepdim=True), full.argmax(0, keepdim=True))
    assert scores.numpy().shape == full.shape
    assert type(scores.to(torch.float64)) is Tensor
    assert torch.equal(scores.to(torch.float64), full.double())
    assert torch.equal(copy.deepcopy(scores), full)
    with pytest.raises(TypeError, match="would change a ClassScores"):
        scores.add_(1)


def test_class_scores_go_elsewhere_without_being_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ClassScores(*_random_case(2))
    assert scores.to("cpu", torch.float32) is scores
    with monkeypatch.context() as patch:
        patch.setattr(ClassScores, "full", lambda self: pytest.fail("computed"))
        moved = scores.to("meta")  # a device for which nothing could be computed
        assert (type(moved), moved.device.type, moved.shape) == (ClassScores, "meta", scores.shape)
        assert moved.argmax(0).device.type == moved.argmax(-3).device.type == "meta"


def test_saved_class_scores_are_a_tensor_to_whoever_loads_them(tmp_path: Path) -> None:
    scores = ClassScores(*_random_case(2))
    torch.save({"sem_seg": scores}, tmp_path / "scores.pt")
    loaded = torch.load(tmp_path / "scores.pt", weights_only=True)["sem_seg"]
    sent = pickle.loads(pickle.dumps(scores))
    assert type(loaded) is type(sent) is Tensor
    assert torch.equal(loaded, scores.full())
    assert torch.equal(sent, scores.full())


@pytest.mark.parametrize("resize_first", [True, False])
def test_masks_in_half_precision_are_converted_once(
    operators: str, resize_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if operators == "pytorch":
        pytest.skip("there they are converted a few at a time")
    logits, masks, geometry = _random_case(2)
    expected = semantic_inference(logits, masks.bfloat16().float(), geometry, resize_before_inference=resize_first)
    monkeypatch.setattr(semantic, "_BAND", 1)
    with _Conversions() as found:
        actual = semantic_inference(logits, masks.bfloat16(), geometry, resize_before_inference=resize_first)
    assert found.count == 1
    torch.testing.assert_close(actual, expected)


def test_the_highest_class_scores_take_no_memory_for_all(operators: str) -> None:
    if operators == "pytorch":
        pytest.skip("there all are computed")
    size = (300, 100)
    scores = ClassScores(torch.randn(20, 134), torch.randn(20, 4, 4), MaskGeometry(size, size, size))
    with _LargestFloats() as found:
        scores.argmax(0)
    assert found.largest <= 20 * 300 * 100 < scores.numel()


def test_instances_of_allowed_classes_only() -> None:
    _, masks, geometry = _random_case(3)
    logits = torch.randn(len(masks), 4)
    every = instance_inference(logits, masks, geometry, topk=20)
    some = instance_inference(logits, masks, geometry, topk=20, allowed_classes={0, 2})
    kept = every.pred_classes != 1
    assert 0 < len(some) < len(every)
    assert torch.equal(some.pred_classes, every.pred_classes[kept])
    assert torch.equal(some.pred_masks, every.pred_masks[kept])


def test_instances_of_probable_classes_only(operators: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, masks, geometry = _random_case(3)
    logits = torch.randn(len(masks), 4)
    every = instance_inference(logits, masks, geometry, topk=20, allowed_classes={0, 2})
    made = []
    binarise = instance._binarise
    monkeypatch.setattr(instance, "_binarise", lambda *args: made.append(len(args[1])) or binarise(*args))
    some = instance_inference(logits, masks, geometry, topk=20, allowed_classes={0, 2}, least_probability=0.4)
    assert made == [len(some)]  # no masks for the others
    assert every.scores.max() > 0.4 > some.scores.min()  # those of a sure class and an unsure mask are there
    assert 0 < len(some) < len(every)
    for threshold in (0.4, 0.45):
        kept, expected = some[some.scores >= threshold], every[every.scores >= threshold]
        assert torch.equal(kept.scores, expected.scores)
        assert torch.equal(kept.pred_classes, expected.pred_classes)
        assert torch.equal(kept.pred_masks, expected.pred_masks)
    without_choice = instance_inference(logits, masks, geometry, topk=20, least_probability=0.4)
    assert set(without_choice.pred_classes.tolist()) == {0, 1, 2}


def test_boxes_are_tight() -> None:
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2:4, 3:8] = True
    masks[1, 5, 8] = True
    expected = [[3, 2, 8, 4], [8, 5, 9, 6], [0, 0, 0, 0]]
    assert masks_to_boxes(masks).tolist() == expected
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize(("length", "count"), [(1, 1), (7, 7), (100, 30), (401, 100), (13300, 100), (12991, 1)])
def test_largest_in_parts(length: int, count: int) -> None:
    values = torch.rand(length)
    largest, places = instance._largest(values, count)
    assert torch.equal(values[places], largest)
    assert torch.equal(largest.sort().values, values.topk(count).values.sort().values)
    assert len(places.unique()) == count
