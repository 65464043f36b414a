"""The training loss against loops over pairs, and where the official release fails."""

import itertools
import math
from typing import Any

import pytest
import torch
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.modeling import criterion as criterion_module
from mask2former.modeling import matcher as matcher_module
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.mask_losses import pairwise_sigmoid_focal_loss, sigmoid_focal_loss
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.point_sampling import sample_binary_masks, sample_logits
from mask2former.modeling.query_masks import QueryMasks, group_layers

NUM_CLASSES = 3
TERMS = {"loss_ce", "loss_mask", "loss_dice"}


@pytest.fixture(params=["one by one", "at once"], autouse=True)
def layers_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a GPU, or not, as on a CPU."""
    at_once: bool = request.param == "at once"
    if at_once:
        for module in (criterion_module, matcher_module):
            monkeypatch.setattr(
                module, "group_layers", lambda count, on, _: group_layers(count, on, torch.device("cuda"))
            )
    return at_once


@pytest.fixture
def criterion() -> SetCriterion:
    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    return SetCriterion(NUM_CLASSES, matcher, {}, eos_coef=0.1, num_points=64)


def make_outputs(queries: int, images: int = 1) -> dict[str, Tensor]:
    return {
        "pred_logits": torch.randn(images, queries, NUM_CLASSES + 1, requires_grad=True),
        "pred_masks": torch.randn(images, queries, 8, 8, requires_grad=True),
    }


def make_target(count: int) -> dict[str, Any]:
    return {
        "labels": torch.randint(0, NUM_CLASSES, (count,)),
        "masks": torch.rand(count, 32, 32) > 0.5,
        "name": "a.png",
    }


def draw_uncertain_points(logits: Tensor) -> Tensor:
    """Detectron2's, whose random numbers are the criterion's."""
    return get_uncertain_point_coords_with_randomness(logits[:, None], lambda x: -x.abs(), 64, 3.0, 0.75)


def naive_losses(
    criterion: SetCriterion, outputs: dict[str, Tensor], targets: list[dict[str, Any]], num_masks: int
) -> dict[str, float]:
    """The three terms, a query, a mask and a point at a time; draws the random numbers that the criterion draws."""
    matches = criterion.matcher(outputs, targets)
    pairs = [
        (image, q, t)
        for image, match in enumerate(matches)
        for q, t in zip(match[0].tolist(), match[1].tolist(), strict=True)
    ]
    classes = {(image, q): int(targets[image]["labels"][t]) for image, q, t in pairs}
    total = weights = 0.0
    for image, of_queries in enumerate(outputs["pred_logits"].detach().log_softmax(-1)):
        for q, log_probabilities in enumerate(of_queries):
            wanted = classes.get((image, q), NUM_CLASSES)
            weight = 0.1 if wanted == NUM_CLASSES else 1.0
            total -= weight * float(log_probabilities[wanted])
            weights += weight

    masks = outputs["pred_masks"].detach()
    points = draw_uncertain_points(torch.stack([masks[i, q] for i, q, _ in pairs]))
    ce = dice = 0.0
    for (image, q, t), of_pair in zip(pairs, points, strict=True):
        grid = 2 * of_pair[None, None] - 1
        sampled = F.grid_sample(masks[image, q][None, None], grid, align_corners=False).flatten().sigmoid().tolist()
        wanted_mask = targets[image]["masks"][t][None, None].float()
        wanted_values = F.grid_sample(wanted_mask, grid, align_corners=False).flatten().tolist()
        terms = [w * math.log(p) + (1 - w) * math.log(1 - p) for p, w in zip(sampled, wanted_values, strict=True)]
        ce -= sum(terms) / len(terms)
        overlap = sum(p * w for p, w in zip(sampled, wanted_values, strict=True))
        dice += 1 - (2 * overlap + 1) / (sum(sampled) + sum(wanted_values) + 1)
    return {"loss_ce": total / weights, "loss_mask": ce / num_masks, "loss_dice": dice / num_masks}


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (9, 1)])
def test_terms_equal_loops(criterion: SetCriterion, counts: tuple[int, int]) -> None:
    outputs, targets = make_outputs(queries=5, images=2), [make_target(count) for count in counts]
    torch.manual_seed(5)
    losses = criterion(outputs, targets)
    torch.manual_seed(5)
    expected = naive_losses(criterion, outputs, targets, num_masks=sum(counts))
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_every_prediction_is_matched_and_counted_alike(criterion: SetCriterion) -> None:
    final, first, second = make_outputs(5), make_outputs(5), make_outputs(5)
    targets = [make_target(3)]
    torch.manual_seed(5)
    losses = criterion(final | {"aux_outputs": [first, second]}, targets)
    assert set(losses) == TERMS | {f"{name}_{i}" for name in TERMS for i in (0, 1)}
    torch.manual_seed(5)
    for outputs, suffix in ((final, ""), (first, "_0"), (second, "_1")):
        for name, value in criterion(outputs, targets).items():
            torch.testing.assert_close(losses[name + suffix], value, rtol=1e-6, atol=0)


def test_terms_can_be_weighted_in_place(criterion: SetCriterion) -> None:
    """As the official release's models do."""
    outputs = make_outputs(5) | {"aux_outputs": [make_outputs(5)]}
    losses = criterion(outputs, [make_target(3)])
    before = {name: value.item() for name, value in losses.items()}
    for name in losses:
        losses[name] *= 2.0
    sum(losses.values()).backward()
    assert {name: value.item() for name, value in losses.items()} == {name: 2 * x for name, x in before.items()}


def lazy_predictions(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], dict[str, Any]]:
    """Leaves, and outputs of three layers whose masks are their products."""
    features = torch.randn(2, 6, 8, 10, dtype=dtype, requires_grad=True)
    embeddings = [torch.randn(2, 7, 6, dtype=dtype, requires_grad=True) for _ in range(3)]
    logits = [torch.randn(2, 7, NUM_CLASSES + 1, requires_grad=True) for _ in range(3)]
    final, *auxiliary = (
        {"pred_logits": x, "pred_masks": QueryMasks(y, features)} for x, y in zip(logits, embeddings, strict=True)
    )
    return [features, *embeddings, *logits], final | {"aux_outputs": auxiliary}


def with_whole_masks(outputs: dict[str, Any]) -> dict[str, Any]:
    return outputs | {
        "pred_masks": outputs["pred_masks"].full(),
        "aux_outputs": [
            auxiliary | {"pred_masks": auxiliary["pred_masks"].full()} for auxiliary in outputs["aux_outputs"]
        ],
    }


@pytest.mark.parametrize("compare_on", ["points", "masks"])
@pytest.mark.parametrize("counts", [(4, 2), (0, 9), (0, 0)])
def test_masks_that_are_not_computed_have_the_losses_and_gradients_of_those_that_are(
    counts: tuple[int, int], compare_on: str
) -> None:
    matcher = HungarianMatcher(2, 5, 5, num_points=64, compare_on=compare_on)
    criterion = SetCriterion(NUM_CLASSES, matcher, {}, eos_coef=0.1, num_points=64, compare_on=compare_on)
    leaves, outputs = lazy_predictions()
    targets = [make_target(count) for count in counts]
    if compare_on == "points":
        targets[1]["ignore_mask"] = torch.rand(32, 32) > 0.8
    results = []
    for form in (outputs, with_whole_masks(outputs)):
        torch.manual_seed(5)
        losses = criterion(form, targets)
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves, materialize_grads=True)))
    (losses, gradients), (expected_losses, expected_gradients) = results
    torch.testing.assert_close(losses, expected_losses)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("num_points", [79, 80])
def test_only_selected_masks_have_a_gradient_to_keep(
    num_points: int, layers_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = SetCriterion(NUM_CLASSES, HungarianMatcher(2, 5, 5, num_points=num_points), {}, eos_coef=0.1)
    computed: list[tuple[int, bool]] = []

    def count(embeddings: Tensor, pixels: Tensor) -> Tensor:
        computed.append((embeddings.shape[:-1].numel(), torch.is_grad_enabled()))
        return F.linear(embeddings, pixels)

    monkeypatch.setattr("mask2former.modeling.query_masks.linear", count)
    _, outputs = lazy_predictions()
    criterion(outputs, [make_target(4), make_target(2)])
    # For matching those of an image, and one or all layers, or none where points are fewer than the 8 * 10 pixels; then
    # one product an image for all layers.
    for_matching = [(3 * 7, False)] * 2 if layers_at_once else [(7, False)] * 6
    assert computed == (for_matching if num_points == 80 else []) + [(3 * 4, True), (3 * 2, True)]


class _LooksAtValues(TorchDispatchMode):
    """Lists operators whose result is a Python number, or has a size that depends on values: they wait for a GPU."""

    OPERATORS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or func.overloadpacket in self.OPERATORS:
            self.found.append(str(func))
        return func(*args, **kwargs or {})


def list_copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copies between the CPU and a GPU for which a program would wait; the CPU stands for both."""
    copies: list[str] = []
    cpu, to = Tensor.cpu, Tensor.to

    def copy_to_cpu(x: Tensor) -> Tensor:
        copies.append(f"{x.numel()} to the CPU")
        return cpu(x)

    def move(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if isinstance(args[0], torch.device | str) and not options.get("non_blocking"):
            copies.append(f"{x.numel()} to {args[0]}")
        return to(x, *args, **options)

    monkeypatch.setattr(Tensor, "cpu", copy_to_cpu)
    monkeypatch.setattr(Tensor, "to", move)
    for module, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: copies.append(name))
    return copies


@pytest.mark.parametrize("counts", [(4, 2), (0, 9), (0, 0)])
def test_nothing_waits_for_the_device_but_one_copy_of_all_costs(
    criterion: SetCriterion, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outputs = lazy_predictions()
    targets = [make_target(count) | {"ignore_mask": torch.rand(32, 32) > 0.8} for count in counts]
    copies = list_copies(monkeypatch)
    with _LooksAtValues() as looks:
        losses = criterion(outputs, targets)
        sum(losses.values()).backward()
    assert copies == [f"{3 * 7 * sum(counts)} to the CPU"]
    assert looks.found == []


@pytest.mark.parametrize("counts", [(0,), (1,), (12,), (0, 0), (0, 12)])
def test_any_number_of_targets(criterion: SetCriterion, counts: tuple[int, ...]) -> None:
    outputs = make_outputs(queries=5, images=len(counts))
    losses = criterion(outputs, [make_target(count) for count in counts])
    assert set(losses) == TERMS
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(x.grad).all() for x in outputs.values())  # which also says that each has a gradient
    assert (sum(counts) == 0) == (losses["loss_mask"].item() == 0)


def test_class_loss_without_targets_is_no_object(criterion: SetCriterion) -> None:
    outputs = make_outputs(queries=5)
    expected = F.cross_entropy(outputs["pred_logits"][0], torch.full((5,), NUM_CLASSES))
    assert torch.isclose(criterion(outputs, [make_target(0)])["loss_ce"], expected)


@pytest.mark.parametrize("position", [(0, 0), (31, 0), (16, 15)])
def test_one_pixel_masks_have_a_loss_and_a_gradient(criterion: SetCriterion, position: tuple[int, int]) -> None:
    target = make_target(2)
    target["masks"][:] = False
    target["masks"][0][position] = True  # and the other mask is empty altogether
    outputs = make_outputs(5)
    losses = criterion(outputs, [target])
    sum(losses.values()).backward()
    assert all(value.isfinite() and value > 0 for value in losses.values())
    assert outputs["pred_masks"].grad.isfinite().all()


@pytest.mark.parametrize("bad_queries", [1, 4, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_masks_leave_the_losses_whole(
    criterion: SetCriterion, bad: float, bad_queries: int, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = make_outputs(5)
    with torch.no_grad():
        outputs["pred_masks"][0, :bad_queries] = bad
    losses = criterion(outputs, [make_target(3)])
    sum(losses.values()).backward()
    assert "a.png" in caplog.text
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(x.grad).all() for x in outputs.values())
    assert (losses["loss_mask"].item() == 0) == (bad_queries == 5)


def test_a_broken_layer_leaves_the_others_alone(criterion: SetCriterion) -> None:
    """Though it has fewer matched masks than they."""
    layers = [make_outputs(5, images=2) for _ in range(3)]
    targets = [make_target(3), make_target(4)]
    results = []
    for bad_queries in (0, 3):
        with torch.no_grad():
            layers[0]["pred_masks"][0, :bad_queries] = math.nan
        torch.manual_seed(3)
        results.append(criterion(layers[0] | {"aux_outputs": layers[1:]}, targets))
    sum(results[1].values()).backward()
    assert all(x.grad.isfinite().all() for layer in layers for x in layer.values())
    torch.manual_seed(3)
    alone = criterion(layers[0], targets)
    sound, broken = results
    for name, value in broken.items():
        torch.testing.assert_close(value, alone[name] if name in TERMS else sound[name], rtol=1e-6, atol=0)
    assert 0 < broken["loss_dice"] < sound["loss_dice"] - 0.04  # one matched mask is missing, of seven


def test_ignored_pixels_do_not_count(criterion: SetCriterion) -> None:
    target = make_target(2)
    ignore = torch.zeros(32, 32, dtype=torch.bool)
    ignore[:, 16:] = True
    changed = target | {"masks": target["masks"].clone()}
    # Bilinear samples left of the border read one column beyond it, so that column stays.
    changed["masks"][:, :, 17:] ^= True
    outputs = make_outputs(5)
    losses, counted = [], []
    for case in (target, changed):
        torch.manual_seed(3)
        losses.append(criterion(outputs, [case | {"ignore_mask": ignore}]))
        torch.manual_seed(3)
        counted.append(criterion(outputs, [case]))
    for name, value in losses[0].items():
        assert torch.isclose(value, losses[1][name], atol=1e-6), name
    assert not torch.isclose(counted[0]["loss_dice"], counted[1]["loss_dice"], atol=1e-3)


def test_an_image_of_nothing_but_void_has_no_mask_loss(criterion: SetCriterion) -> None:
    target = make_target(2) | {"ignore_mask": torch.ones(32, 32, dtype=torch.bool)}
    losses = criterion(make_outputs(5), [target])
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert losses["loss_ce"].isfinite()


def test_void_of_one_image_leaves_the_others_alone(criterion: SetCriterion) -> None:
    outputs, targets = make_outputs(5, images=2), [make_target(2), make_target(2)]
    void = torch.zeros(32, 32, dtype=torch.bool)
    torch.manual_seed(3)
    without = criterion(outputs, targets)
    torch.manual_seed(3)
    with_empty = criterion(outputs, [targets[0], targets[1] | {"ignore_mask": void}])
    for name, value in without.items():
        torch.testing.assert_close(with_empty[name], value)


def test_classes_alone(criterion: SetCriterion) -> None:
    only_classes = SetCriterion(NUM_CLASSES, criterion.matcher, {}, eos_coef=0.1, losses=["labels"])
    assert set(only_classes(make_outputs(5), [make_target(2)])) == {"loss_ce"}


def test_unknown_losses_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown losses \['boxes'\]; the criterion has \['labels', 'masks'\]"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, losses=["boxes"])
    with pytest.raises(ValueError, match=r"MASK_LOSS is 'l2'; expected one of \['cross_entropy', 'focal'\]"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, mask_loss="l2")


def test_no_points_are_an_error() -> None:
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS is 0; masks are compared at one point or more"):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, num_points=0)
    SetCriterion(3, HungarianMatcher(), {}, 0.1, num_points=0, compare_on="masks")


def test_nothing_annotated_and_no_weight_for_no_object() -> None:
    outputs = make_outputs(5)
    outputs["pred_logits"].requires_grad_()
    losses = SetCriterion(3, HungarianMatcher(), {}, eos_coef=0.0)(outputs, [make_target(0)])
    assert losses["loss_ce"] == 0
    losses["loss_ce"].backward()
    assert not outputs["pred_logits"].grad.any()


@pytest.mark.parametrize(("oversample", "importance"), [(0.5, 0.75), (3.0, 1.5), (3.0, -0.5)])
def test_points_that_cannot_be_chosen_are_an_error(oversample: float, importance: float) -> None:
    message = (
        rf"IMPORTANCE_SAMPLE_RATIO is {importance}, .*OVERSAMPLE_RATIO times as many candidates, {oversample}; let"
    )
    with pytest.raises(ValueError, match=message):
        SetCriterion(3, HungarianMatcher(), {}, 0.1, oversample_ratio=oversample, importance_sample_ratio=importance)


def test_focal_loss_is_used_in_matching_and_loss() -> None:
    outputs, target = make_outputs(5), make_target(3)
    matcher = HungarianMatcher(0, 1, 0, 64, mask_loss="focal")
    focal = SetCriterion(NUM_CLASSES, matcher, {}, 0.1, num_points=64, mask_loss="focal")
    torch.manual_seed(5)
    queries, matched = focal.matcher(outputs, [target])[0]
    torch.manual_seed(5)
    points = torch.rand(1, 64, 2)
    predicted = sample_logits(outputs["pred_masks"], points)[0].detach()
    wanted = sample_binary_masks(target["masks"], torch.arange(3), points)
    cost = pairwise_sigmoid_focal_loss(predicted, wanted)
    best = min(sum(float(cost[q, t]) for t, q in enumerate(c)) for c in itertools.permutations(range(5), 3))
    assert float(cost[queries, matched].sum()) == pytest.approx(best, abs=1e-6)

    torch.manual_seed(5)
    losses = focal(outputs, [target])
    torch.manual_seed(5)
    torch.rand(1, 64, 2)
    logits = outputs["pred_masks"][0, queries]
    points = draw_uncertain_points(logits)
    wanted = sample_binary_masks(target["masks"], matched, points)
    expected = sigmoid_focal_loss(sample_logits(logits[:, None], points)[:, 0], wanted).mean()
    assert torch.isclose(losses["loss_mask"], expected)


def official_outputs(queries: int, layers: int, images: int = 2) -> dict[str, Any]:
    return {
        **make_outputs(queries, images),
        "aux_outputs": [make_outputs(queries, images) for _ in range(layers - 1)],
    }


class _SecondComesFirst(nn.Module):
    """Matches queries 1, 0 with the first two targets, and knows nothing but that."""

    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        return [(torch.tensor([1, 0]), torch.tensor([0, 1])) for _ in targets]


def test_a_matcher_of_ones_own_is_called_for_each_layer() -> None:
    matcher = _SecondComesFirst()
    criterion = SetCriterion(NUM_CLASSES, matcher, {}, eos_coef=0.1, losses=["labels"])
    outputs, targets = official_outputs(6, 3), [make_target(2), make_target(2)]
    losses = criterion(outputs, targets)
    assert losses.keys() == {"loss_ce", "loss_ce_0", "loss_ce_1"}
    for suffix, layer in zip(["", "_0", "_1"], [outputs, *outputs["aux_outputs"]], strict=True):
        wanted = torch.full((2, 6), NUM_CLASSES)
        for row, target in zip(wanted, targets, strict=True):
            row[1], row[0] = target["labels"]
        expected = F.cross_entropy(layer["pred_logits"].transpose(1, 2), wanted, criterion.empty_weight)
        torch.testing.assert_close(losses[f"loss_ce{suffix}"], expected)


def test_a_loss_of_ones_own() -> None:
    class WithArea(SetCriterion):
        def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_masks: float) -> dict[str, Tensor]:
            if loss != "area":
                return super().get_loss(loss, outputs, targets, indices, num_masks)
            chosen = outputs["pred_masks"][self._get_src_permutation_idx(indices)]
            images, rows = self._get_tgt_permutation_idx(indices)
            masks = torch.stack([targets[i]["masks"][j] for i, j in zip(images.tolist(), rows.tolist(), strict=True)])
            assert num_masks == 5
            return {"loss_area": (chosen.sigmoid().mean((1, 2)) - masks.float().mean((1, 2))).abs().sum() / num_masks}

    matcher = HungarianMatcher(2, 5, 5, num_points=64)
    criterion = WithArea(
        NUM_CLASSES, matcher=matcher, weight_dict={}, eos_coef=0.1, losses=["labels", "masks", "area"], num_points=64
    )
    losses = criterion(official_outputs(6, 2), [make_target(2), make_target(3)])
    assert losses.keys() == {name + suffix for name in (*TERMS, "loss_area") for suffix in ("", "_0")}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_by_the_official_methods_the_terms_are_the_same() -> None:
    class Official(SetCriterion):
        def loss_masks(self, outputs: Any, targets: Any, indices: Any, num_masks: float) -> dict[str, Tensor]:
            return super().loss_masks(outputs, targets, indices, num_masks)

    # Whole masks, of which no random points are drawn.
    matcher = HungarianMatcher(2, 5, 5, compare_on="masks")
    own, official = (
        kind(NUM_CLASSES, matcher, {}, eos_coef=0.1, compare_on="masks") for kind in (SetCriterion, Official)
    )
    outputs, targets = official_outputs(4, 3), [make_target(2), make_target(0)]
    found, expected = official(outputs, targets), own(outputs, targets)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_official_methods_draw_the_official_points() -> None:
    criterion = SetCriterion(NUM_CLASSES, HungarianMatcher(2, 5, 5, num_points=64), {}, eos_coef=0.1, num_points=64)
    outputs, targets = make_outputs(4), [make_target(3)]
    queries, matched = torch.tensor([2, 0]), torch.tensor([0, 1])
    torch.manual_seed(0)
    found = criterion.get_loss("masks", outputs, targets, [(queries, matched)], 3.0)
    torch.manual_seed(0)
    masks = outputs["pred_masks"][0, queries][:, None]
    points = get_uncertain_point_coords_with_randomness(masks, lambda x: -x.abs(), 64, 3, 0.75)
    logits = sample_logits(masks, points)[:, 0]
    wanted = sample_binary_masks(targets[0]["masks"], matched, points)
    assert found.keys() == {"loss_mask", "loss_dice"}
    torch.testing.assert_close(found["loss_mask"], criterion_module.sigmoid_ce_loss_jit(logits, wanted, 3.0))
    torch.testing.assert_close(found["loss_dice"], criterion_module.dice_loss_jit(logits, wanted, 3.0))
    with pytest.raises(ValueError, match="unknown loss 'area'"):
        criterion.get_loss("area", outputs, targets, [(queries, matched)], 3.0)


def test_a_matcher_that_overrides_what_the_official_one_calls() -> None:
    class Reversed(HungarianMatcher):
        def memory_efficient_forward(self, outputs: Any, targets: Any) -> Any:
            return [
                (queries.flip(0), matched) for queries, matched in super().memory_efficient_forward(outputs, targets)
            ]

    outputs, targets = make_outputs(6), [make_target(2)]
    torch.manual_seed(0)
    ((plain, _),) = HungarianMatcher(2, 5, 5, num_points=64)(outputs, targets)
    torch.manual_seed(0)
    matcher = Reversed(2, 5, 5, num_points=64)
    ((found, _),) = matcher(outputs, targets)
    assert found.tolist() == plain.flip(0).tolist()
    assert not SetCriterion(NUM_CLASSES, matcher, {}, eos_coef=0.1)._compares_together()
