"""The whole model, tiny: batches, sizes, numbers of classes and queries, void, precision, errors."""

import logging
import math
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from mask2former.engine.train_loop import StepTrainer
from mask2former.modeling import MaskFormer
from mask2former.modeling.postprocessing import ClassScores
from mask2former.modeling.targets import prepare_targets


def training_input(height: int, width: int, count: int, name: str = "a.png") -> dict[str, Any]:
    instances = Instances((height, width))
    instances.gt_classes = torch.zeros(count, dtype=torch.int64)
    instances.gt_masks = torch.rand(count, height, width) > 0.5
    return {"image": torch.rand(3, height, width) * 255, "instances": instances, "file_name": name}


@pytest.mark.parametrize("number", [2, 3])
def test_batched_equals_single(tiny_cfg: CfgNode, number: int) -> None:
    model = build_model(tiny_cfg).eval()
    images = [torch.rand(3, 64, 96) * 255 for _ in range(number)]
    with torch.no_grad():
        batched = model([{"image": image} for image in images])
        singles = [model([{"image": image}])[0] for image in images]
    for both, one in zip(batched, singles, strict=True):
        torch.testing.assert_close(both["sem_seg"], one["sem_seg"], atol=1e-4, rtol=0)
        assert both["panoptic_seg"][1] == one["panoptic_seg"][1]
        assert (both["panoptic_seg"][0] != one["panoptic_seg"][0]).float().mean() < 1e-3
        ours, theirs = (x["instances"][x["instances"].scores.argsort(descending=True)] for x in (both, one))
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        assert (ours.pred_masks != theirs.pred_masks).float().mean() < 1e-3
        assert (ours.pred_boxes.tensor == theirs.pred_boxes.tensor).float().mean() > 0.9


def test_images_of_a_batch_may_have_sizes_of_their_own(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        first, second = model(
            [{"image": torch.rand(3, 40, 64)}, {"image": torch.rand(3, 33, 96), "height": 20, "width": 30}]
        )
    assert first["sem_seg"].shape == (3, 40, 64)
    assert second["sem_seg"].shape == (3, 20, 30)
    assert second["instances"].image_size == (20, 30)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (95, 32)])
def test_odd_sizes(tiny_cfg: CfgNode, height: int, width: int) -> None:
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        result = model([{"image": torch.rand(3, height, width) * 255, "height": 41, "width": 50}])[0]
    assert result["sem_seg"].shape == (3, 41, 50)
    assert result["panoptic_seg"][0].shape == (41, 50)
    assert result["instances"].pred_masks.shape[1:] == (41, 50)


@pytest.mark.parametrize(("classes", "queries"), [(1, 10), (3, 300)])
def test_one_class_and_many_queries(tiny_cfg: CfgNode, classes: int, queries: int) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    tiny_cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = queries
    tiny_cfg.MODEL.MASK_FORMER.IGNORE_VOID = True
    tiny_cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False  # whose things have two classes
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 250
    model = build_model(tiny_cfg).train()
    losses: dict[str, Tensor] = model([training_input(64, 64, 4), training_input(50, 40, 0)])
    assert len(losses) == 3 * tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        result = model.eval()([{"image": torch.rand(3, 64, 64) * 255}])[0]
    assert result["sem_seg"].shape == (classes, 64, 64)
    assert len(result["instances"]) == min(250, classes * queries)


@pytest.mark.parametrize("count", [0, 3])
def test_every_parameter_is_part_of_the_loss(tiny_cfg: CfgNode, count: int) -> None:
    """Of images without targets too: DistributedDataParallel waits for every gradient."""
    model = build_model(tiny_cfg).train()
    sum(model([training_input(32, 32, count)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_losses_are_weighted_terms(tiny_cfg: CfgNode) -> None:
    model, batch = build_model(tiny_cfg).train(), [training_input(64, 64, 2)]
    torch.manual_seed(3)
    weighted = model(batch)
    torch.manual_seed(3)
    images = model._normalise_and_pad(batch)
    outputs = model.sem_seg_head(model.backbone(images.tensor))
    terms = model.criterion(outputs, prepare_targets(batch, images.tensor.shape[-2:], model.device))
    assert set(weighted) == set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(weighted[name], value * (2.0 if name.startswith("loss_ce") else 5.0))


def test_without_deep_supervision_no_auxiliary_loss(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    losses = build_model(tiny_cfg).train()([training_input(64, 64, 2)])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


@pytest.mark.parametrize("ignore_void", [False, True])
def test_void_is_ignored_if_asked(tiny_cfg: CfgNode, ignore_void: bool) -> None:
    tiny_cfg.MODEL.MASK_FORMER.IGNORE_VOID = ignore_void
    entry = training_input(64, 64, 2) | {"ignore_mask": torch.ones(64, 64, dtype=torch.bool)}
    losses = build_model(tiny_cfg).train()([entry])
    assert (losses["loss_mask"] == 0) == ignore_void


def test_a_model_that_was_left_in_training_mode(tiny_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"is in training mode, but an image has no instances .* model\.eval\(\)"):
        build_model(tiny_cfg).train()([training_input(64, 64, 2), {"image": torch.zeros(3, 64, 64)}])


def test_targets_may_have_boxes(tiny_cfg: CfgNode) -> None:
    """Detectron2's mappers and many of its users' give them; nothing here reads them."""
    model, entry = build_model(tiny_cfg).train(), training_input(64, 64, 2)
    torch.manual_seed(0)
    expected = model([entry])
    entry["instances"].gt_boxes = BitMasks(entry["instances"].gt_masks).get_bounding_boxes()
    torch.manual_seed(0)
    assert model([entry]) == expected


def test_a_seeded_run_repeats(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DROPOUT = 0.1
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = build_model(tiny_cfg).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        for _ in range(2):
            optimizer.zero_grad()
            losses = model([training_input(32, 32, 3)])
            sum(losses.values()).backward()
            optimizer.step()
        runs.append({name: value.item() for name, value in losses.items()})
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_query_that_breaks_is_told_and_training_goes_on(
    tiny_cfg: CfgNode, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(tiny_cfg).train()

    def break_first_query(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([torch.full_like(output[:, :1], bad), output[:, 1:]], dim=1)

    handle = model.sem_seg_head.predictor.mask_embed.register_forward_hook(break_first_query)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    trainer = StepTrainer(model, [[training_input(64, 64, 3)]] * 2, optimizer, max_skipped_steps=1)
    trainer.iter = 0
    before = {name: value.clone() for name, value in model.named_parameters()}
    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        trainer.run_step()
        assert all(math.isfinite(value) for value, _ in storage.latest().values())
        handle.remove()
        trainer.run_step()
    assert "matching costs of image a.png are NaN or infinite" in caplog.text
    assert "the step is left out" not in caplog.text  # nothing of that query was used
    assert all(value.isfinite().all() for value in model.parameters())
    assert not torch.equal(
        before["sem_seg_head.predictor.class_embed.bias"], model.sem_seg_head.predictor.class_embed.bias
    )


def test_a_gradient_that_breaks_leaves_the_step_out(tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(tiny_cfg).train()
    bias = model.sem_seg_head.predictor.class_embed.bias
    handle = bias.register_hook(lambda gradient: gradient * math.inf)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    trainer = StepTrainer(model, [[training_input(64, 64, 3)]] * 2, optimizer, max_skipped_steps=1)
    trainer.iter = 0
    before = {name: value.clone() for name, value in model.named_parameters()}
    with EventStorage(), caplog.at_level(logging.WARNING):
        trainer.run_step()
        assert "(images of process 0: ['a.png']). The step is skipped" in caplog.text
        assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
        handle.remove()
        trainer.run_step()
    assert not torch.equal(before["sem_seg_head.predictor.class_embed.bias"], bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_in_half_precision(tiny_cfg: CfgNode, dtype: torch.dtype) -> None:
    model = build_model(tiny_cfg).eval()
    batch = [{"image": torch.rand(3, 64, 96) * 255, "height": 50, "width": 70}]
    with torch.no_grad():
        full = model(batch)[0]
        with torch.autocast("cpu", dtype=dtype):
            half = model(batch)[0]
    assert half["sem_seg"].dtype == torch.float32
    assert (half["sem_seg"] - full["sem_seg"]).abs().mean() < 0.02 * full["sem_seg"].mean()
    assert half["instances"].scores.isfinite().all()
    assert half["panoptic_seg"][0].shape == (50, 70)


@torch.no_grad()
@pytest.mark.parametrize("std", [[58.0, 57.0, 57.0], [58, 57, 57]])
def test_images_of_any_type(tiny_cfg: CfgNode, std: list[float]) -> None:
    tiny_cfg.MODEL.PIXEL_STD = std
    model = build_model(tiny_cfg).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    expected = model([{"image": image.float()}])[0]["sem_seg"]
    for dtype in (torch.uint8, torch.int16, torch.float64):
        assert torch.equal(model([{"image": image.to(dtype)}])[0]["sem_seg"], expected)


@torch.no_grad()
def test_inference_in_double_precision(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model.run_network(images)["pred_logits"]
    found = model.double().run_network(images.double())["pred_logits"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-4)


def test_only_what_is_on_is_given(tiny_cfg: CfgNode) -> None:
    test = tiny_cfg.MODEL.MASK_FORMER.TEST
    for on, name in (("SEMANTIC_ON", "sem_seg"), ("INSTANCE_ON", "instances"), ("PANOPTIC_ON", "panoptic_seg")):
        for key in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"):
            test[key] = key == on
        with torch.no_grad():
            result = build_model(tiny_cfg).eval()([{"image": torch.rand(3, 32, 32)}])[0]
        assert set(result) == {name}


def test_image_of_wrong_shape_is_named(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    with pytest.raises(ValueError, match=r"gray.png has shape \(1, 8, 8\), expected \(3, H, W\)"):
        model([{"image": torch.zeros(1, 8, 8), "file_name": "gray.png"}])


def test_panoptic_results_need_to_know_the_things(tiny_cfg: CfgNode) -> None:
    tiny_cfg.DATASETS.TRAIN = ("tests_modeling_without_things",)
    model = build_model(tiny_cfg).eval()
    with pytest.raises(ValueError, match=r"\(tests_modeling_without_things\) has no thing_dataset_id_to_contiguous_id"):
        model([{"image": torch.rand(3, 32, 32)}])
    # All classes of a model for instances alone are things.
    tiny_cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    (result,) = build_model(tiny_cfg).eval()([{"image": torch.rand(3, 32, 32)}])
    assert len(result["instances"]) == 30


class _Recording(MaskFormer):
    """Calls the official release's methods, and says so."""

    called: list[str]

    def prepare_targets(self, targets: Any, images: Any) -> Any:
        self.called.append("prepare_targets")
        return super().prepare_targets(targets, images)

    def semantic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
        self.called.append(f"semantic_inference of {tuple(mask_pred.shape[1:])}")
        return super().semantic_inference(mask_cls, mask_pred)

    def panoptic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Any:
        self.called.append(f"panoptic_inference of {tuple(mask_pred.shape[1:])}")
        return super().panoptic_inference(mask_cls, mask_pred)

    def instance_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Instances:
        self.called.append(f"instance_inference of {tuple(mask_pred.shape[1:])}")
        return super().instance_inference(mask_cls, mask_pred)


@pytest.fixture
def recording(tiny_cfg: CfgNode) -> _Recording:
    model: _Recording = build_model(tiny_cfg)
    model.__class__ = _Recording
    model.called = []
    return model


def test_inference_methods_of_a_subclass_are_called(recording: _Recording) -> None:
    entry = {"image": torch.rand(3, 64, 96) * 255, "height": 50, "width": 70}
    with torch.no_grad():
        found = recording.eval()([entry])[0]
        assert recording.called == [f"{name}_inference of (50, 70)" for name in ("semantic", "panoptic", "instance")]
        recording.__class__ = MaskFormer  # type: ignore[assignment]
        expected = recording([entry])[0]
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])
    assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    for name in ("scores", "pred_classes", "pred_masks"):
        torch.testing.assert_close(found["instances"].get(name), expected["instances"].get(name))


def test_class_scores_are_lazy_where_no_subclass_makes_them(recording: _Recording) -> None:
    entry = {"image": torch.rand(3, 64, 96) * 255, "height": 50, "width": 70}
    with torch.no_grad():
        model = recording.eval().with_outputs({"semantic"}, lazy_class_scores=True)
        own = model([entry])[0]["sem_seg"]
        assert type(own) is Tensor
        model.__class__ = MaskFormer  # type: ignore[assignment]
        lazy = model([entry])[0]["sem_seg"]
        assert type(lazy) is ClassScores
        torch.testing.assert_close(lazy.full(), own)
        assert type(model.with_outputs({"semantic"})([entry])[0]["sem_seg"]) is Tensor


def test_class_scores_are_lazy_where_that_takes_less_memory(tiny_cfg: CfgNode) -> None:
    entry = {"image": torch.rand(3, 64, 96) * 255}
    with torch.inference_mode():
        model = build_model(tiny_cfg).eval().with_outputs({"semantic"}, lazy_class_scores=True)
        large, small = (found["sem_seg"] for found in model([entry, entry | {"height": 16, "width": 24}]))
    assert [type(scores) for scores in (large, small)] == [ClassScores, Tensor]
    masks = large._arguments[1]
    assert masks.shape[1:] == (16, 24)
    assert masks.untyped_storage().nbytes() == masks.nbytes  # none of the other image


def test_semantic_results_are_resized_after_a_subclass_made_them(tiny_cfg: CfgNode, recording: _Recording) -> None:
    entry = {"image": torch.rand(3, 40, 90) * 255, "height": 20, "width": 45}
    recording.sem_seg_postprocess_before_inference = recording.panoptic_on = recording.instance_on = False
    with torch.no_grad():
        found = recording.eval()([entry])[0]["sem_seg"]
        assert recording.called == ["semantic_inference of (64, 96)"]
        recording.__class__ = MaskFormer  # type: ignore[assignment]
        torch.testing.assert_close(found, recording([entry])[0]["sem_seg"])


def test_targets_of_a_subclass_are_taken(recording: _Recording) -> None:
    batch = [training_input(64, 64, 4), training_input(50, 40, 2)]
    torch.manual_seed(0)
    losses = recording.train()(batch)
    assert recording.called == ["prepare_targets"]
    recording.__class__ = MaskFormer  # type: ignore[assignment]
    torch.manual_seed(0)
    for name, value in recording(batch).items():
        torch.testing.assert_close(losses[name], value)


def test_own_inference_and_tiles_do_not_go_together(recording: _Recording) -> None:
    with pytest.raises(ValueError, match=r"_Recording has its own semantic_inference, panoptic_inference, .*TILE_SIZE"):
        recording.eval().with_tiles(64, 32)([{"image": torch.rand(3, 64, 96)}])


def test_attributes_of_the_official_release(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg)
    assert model.num_queries == model.sem_seg_head.predictor.num_queries == 10
    assert model.sem_seg_postprocess_before_inference is True
    head = model.sem_seg_head
    assert (head.in_features, head.common_stride) == (["res2", "res3", "res4", "res5"], 4)
    assert (head.loss_weight, head.ignore_value) == (1.0, 255)
    assert (head.predictor.num_layers, head.predictor.num_heads) == (3, 4)
    assert model.criterion.eos_coef == tiny_cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
