"""What surrounds CUDA graphs in training, with graphs made of the CPU; ``tests/modeling/test_gpu.py`` has real ones."""

import copy
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import frozen_batch_norm, recorded_operators
from mask2former.modeling.optimize.kept_positions import KeptPositionEmbedding, keep_position_encodings
from mask2former.modeling.optimize.layers import use_folded_batch_norms
from mask2former.modeling.optimize.training_graphs import RecordedNetwork, record_training_graphs
from tests.modeling.sure_model import SWIN, build, make_batch, total_loss


def make_graphs(
    run: Callable[..., tuple[Tensor, ...]], sample_args: tuple[Tensor, ...], *, allow_unused_input: bool, pool: object
) -> Callable[..., tuple[Tensor, ...]]:
    """As PyTorch's: whatever a pass reads or writes stays where it was when it was recorded."""
    assert allow_unused_input
    assert not torch.is_autocast_enabled("cuda")  # which the backward pass would be recorded in too
    assert pool is not None
    assert not gc.isenabled()  # it could destroy another graph, which would be an error
    assert not any(isinstance(x, nn.Parameter) for x in sample_args)  # which DistributedDataParallel has hooks on
    images, *weights = sample_args
    trained = [x for x in weights if x.requires_grad]
    for _ in range(3):
        recorded = run(*sample_args)
    outputs = [x.detach().clone() for x in recorded]
    grad_outputs = [torch.empty_like(x) for x in outputs]
    gradients = {x: torch.empty_like(x) for x in trained}

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, given: Tensor, *given_weights: Tensor) -> tuple[Tensor, ...]:
            assert all(x.data_ptr() == y.data_ptr() for x, y in zip(weights, given_weights, strict=True))
            images.copy_(given)
            nonlocal recorded
            with torch.enable_grad():
                recorded = run(*sample_args)
            for to, x in zip(outputs, recorded, strict=True):
                to.copy_(x)
            return tuple(x.detach() for x in outputs)

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
            for to, x in zip(grad_outputs, given, strict=True):
                to.copy_(x)
            computed = torch.autograd.grad(recorded, trained, grad_outputs, allow_unused=True)
            used = {x: gradients[x].copy_(y).detach() for x, y in zip(trained, computed, strict=True) if y is not None}
            return None, *map(used.get, weights)

    return Graphed.apply  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _graphs_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphs)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    with torch.random.fork_rng():
        monkeypatch.setattr(torch.random, "fork_rng", lambda _: nullcontext())
        yield


def recorded(model: MaskFormer) -> MaskFormer:
    """A copy that is recorded."""
    model = copy.deepcopy(model)
    model.run_network = RecordedNetwork(model.run_network, model)  # type: ignore[method-assign]
    return model


def count_recordings(model: MaskFormer) -> int:
    assert isinstance(model.run_network, RecordedNetwork)
    return len(model.run_network._recordings)


def seeded_loss(model: MaskFormer, batch: list[dict[str, Any]], seed: int) -> Tensor:
    torch.manual_seed(seed)
    return total_loss(model, batch)


def assert_same_gradients(model: nn.Module, expected: nn.Module) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, name


@pytest.fixture
def model(tiny_cfg: CfgNode) -> MaskFormer:
    return build(tiny_cfg, {}).train()


def test_steps_are_those_without_graphs(model: MaskFormer) -> None:
    graphed = recorded(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):
        batch = make_batch()[step % 2 :]
        losses = [seeded_loss(x, batch, step) for x in (model, graphed)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss, each in zip(losses, (model, graphed), strict=True):
            each.zero_grad()
            loss.backward()
        assert_same_gradients(graphed, model)
        optimizer.step()
        with torch.no_grad():  # the least difference would choose other random points
            for ours, theirs in zip(graphed.parameters(), model.parameters(), strict=True):
                ours.copy_(theirs)
    assert count_recordings(graphed) == 2


def test_gradients_add_up(model: MaskFormer) -> None:
    """Where they are recorded, the next backward pass writes."""
    graphed = recorded(model)
    for each in (model, graphed):
        for seed in range(3):
            seeded_loss(each, make_batch(), seed).backward()
    assert_same_gradients(graphed, model)


def test_two_passes_before_a_backward_pass(model: MaskFormer) -> None:
    graphed = recorded(model)
    for each in (model, graphed):
        (seeded_loss(each, make_batch(), 0) + seeded_loss(each, make_batch()[::-1], 1)).backward()
    assert_same_gradients(graphed, model)


def test_two_backward_passes_of_one_forward_pass(model: MaskFormer) -> None:
    loss = seeded_loss(recorded(model), make_batch(), 0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass of one forward pass"):
        loss.backward()


def test_a_pass_without_a_backward_pass_is_forgotten(model: MaskFormer) -> None:
    graphed = recorded(model)
    seeded_loss(graphed, make_batch(), 0)
    assert graphed.run_network._pending() is None  # type: ignore[attr-defined]


def test_only_training_is_recorded(model: MaskFormer) -> None:
    graphed = recorded(model)
    with torch.no_grad():
        graphed(make_batch())
        graphed.eval()(make_batch())
    assert count_recordings(graphed) == 0


def test_four_sizes(model: MaskFormer, caplog: pytest.LogCaptureFixture) -> None:
    graphed = recorded(model)
    batch = make_batch()[:1]
    with caplog.at_level(logging.WARNING):
        for width in (32, 64, 96, 128, 160, 192, 32):
            batch[0]["image"] = torch.rand(3, 64, width)
            batch[0]["instances"] = batch[0]["instances"][:0]
            batch[0]["instances"].gt_masks = torch.zeros(0, 64, width, dtype=torch.bool)
            batch[0]["ignore_mask"] = torch.zeros(64, width, dtype=torch.bool)
            seeded_loss(graphed, batch, 0).backward()
    assert count_recordings(graphed) == 4
    assert len(caplog.records) == 1


def test_weights_elsewhere_are_recorded_anew(model: MaskFormer) -> None:
    graphed = recorded(model)
    weight = graphed.sem_seg_head.predictor.query_feat.weight
    for _ in range(6):
        seeded_loss(graphed, make_batch(), 0).backward()
        weight.data = 2 * weight.data
    model.load_state_dict(graphed.state_dict())
    torch.testing.assert_close(seeded_loss(graphed, make_batch(), 0), seeded_loss(model, make_batch(), 0))
    assert count_recordings(graphed) == 1


def test_other_statistics_of_frozen_batch_norms(model: MaskFormer) -> None:
    """From which weights are computed once."""
    graphed = recorded(model)
    use_folded_batch_norms(graphed)
    seeded_loss(graphed, make_batch(), 0).backward()
    other = {name: 1.5 * x for name, x in model.state_dict().items() if name.endswith("norm.weight")}
    for each in (model, graphed):
        each.load_state_dict(other, strict=False)
    torch.testing.assert_close(seeded_loss(graphed, make_batch(), 0), seeded_loss(model, make_batch(), 0))
    assert other
    assert count_recordings(graphed) == 1


@pytest.mark.parametrize("changes", [{}, SWIN], ids=["resnet", "swin"])
def test_what_a_recording_reads_stays(tiny_cfg: CfgNode, changes: dict[str, Any]) -> None:
    """Also where it was kept for other passes, and is dropped there."""
    graphed = build(tiny_cfg, changes).train()
    keep_position_encodings(graphed)
    use_folded_batch_norms(graphed)
    graphed.run_network = RecordedNetwork(graphed.run_network, graphed)
    seeded_loss(graphed, make_batch(), 0).backward()
    kept: list[Tensor] = []
    for module in graphed.modules():
        if isinstance(module, KeptPositionEmbedding):
            kept += module._kept.values()
        elif affine := frozen_batch_norm._AFFINE.get(module):
            kept += affine.scale, affine.bias
    (network,) = (recording.network for recording in graphed.run_network._recordings.values())
    read = {x.untyped_storage().data_ptr() for x in network.read}
    assert len(kept) > 5
    assert read >= {x.untyped_storage().data_ptr() for x in kept}
    if changes:
        masks = {x.shape for x in network.read if x.dim() == 3 and x.shape[1] == x.shape[2] == 49}
        assert masks  # of shifted windows


def test_switches_are_recorded_apart(model: MaskFormer) -> None:
    graphed = recorded(model)
    seeded_loss(graphed, make_batch(), 0).backward()
    graphed.backbone.eval()
    seeded_loss(graphed, make_batch(), 0).backward()
    assert count_recordings(graphed) == 2
    assert not graphed.has_own("run_network")


def test_other_predictions_than_tensors(model: MaskFormer) -> None:
    run = model.run_network
    model.run_network = RecordedNetwork(lambda images: {**run(images), "number": 3}, model)
    with pytest.raises(RuntimeError, match="not tensors alone, but also int"):
        seeded_loss(model, make_batch(), 0)


def test_freezing_is_seen(model: MaskFormer) -> None:
    graphed = recorded(model)
    for each in (model, graphed):
        each.backbone.requires_grad_(False)
        seeded_loss(each, make_batch(), 0).backward()
        each.zero_grad()
        each.backbone.requires_grad_(True)
        seeded_loss(each, make_batch(), 1).backward()
    assert_same_gradients(graphed, model)


def test_batch_norms_do_not_count_the_recording(model: MaskFormer) -> None:
    model.backbone.norm = nn.BatchNorm2d(3)
    run = model.backbone.forward
    model.backbone.forward = lambda images: run(model.backbone.norm(images))
    graphed = model
    graphed.run_network = RecordedNetwork(graphed.run_network, graphed)  # type: ignore[method-assign]
    once = copy.deepcopy(model.backbone.norm)
    seeded_loss(graphed, make_batch(), 0)
    assert graphed.backbone.norm.num_batches_tracked == 1
    once(model._normalise_and_pad(make_batch()).tensor)
    torch.testing.assert_close(graphed.backbone.norm.running_mean, once.running_mean)


def test_copies_are_their_own(model: MaskFormer) -> None:
    graphed = recorded(model)
    seeded_loss(graphed, make_batch(), 0).backward()
    other = copy.deepcopy(graphed)
    with torch.no_grad():
        other.sem_seg_head.predictor.query_feat.weight.mul_(2)
    model.load_state_dict(other.state_dict())
    assert count_recordings(other) == 0
    torch.testing.assert_close(seeded_loss(other, make_batch(), 0), seeded_loss(model, make_batch(), 0))


def test_what_cannot_be_recorded(model: MaskFormer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore about it")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    with pytest.raises(
        RuntimeError, match=r"recorded \(CUDA error: .* capturing\)\. .* set SOLVER.CUDA_GRAPHS to False"
    ):
        seeded_loss(recorded(model), make_batch(), 0)


def test_a_network_that_waits_is_trained_without(
    model: MaskFormer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And batch norms do not count the attempt."""
    waits = {torch.ops.aten._local_scalar_dense.default: "item"}  # on a GPU
    monkeypatch.setattr(recorded_operators, "reason_to_wait", lambda func, *_: waits.get(func))
    model.backbone.norm = nn.BatchNorm2d(3)
    forward = model.backbone.forward

    def wait_at_the_end(images: Tensor) -> dict[str, Tensor]:
        features = forward(model.backbone.norm(images))
        assert features["res5"].sum().item() != 0
        return features

    model.backbone.forward = wait_at_the_end
    run = model.run_network
    model.run_network = RecordedNetwork(run, model)  # type: ignore[method-assign]
    losses = [seeded_loss(model, make_batch(), 0) for _ in range(2)]
    assert caplog.text.count("no graph can be recorded of the network (the CPU waits for the GPU: item)") == 1
    assert count_recordings(model) == 0
    assert model.backbone.norm.num_batches_tracked == 2
    model.run_network = run
    torch.testing.assert_close(losses[1], seeded_loss(model, make_batch(), 0))
    losses[0].backward()
    assert model.backbone.norm.weight.grad is not None


def test_needs_a_gpu(model: MaskFormer) -> None:
    with pytest.raises(ValueError, match=r"SOLVER.CUDA_GRAPHS .* is a MaskFormer on 'cpu'"):
        record_training_graphs(model)
    with pytest.raises(ValueError, match="is a Linear on"):
        record_training_graphs(nn.Linear(2, 2))
