"""The whole model on a GPU: ``make test-gpu``. ``test_pretend_gpu.py`` has what needs none."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import optimize_for_inference, prepare_for_training, record_training_graphs
from mask2former.modeling.optimize.frequent_sizes import FREQUENT
from mask2former.modeling.optimize.inference import Dtype
from mask2former.ops.masks import has_native_masks
from tests.modeling.sure_model import INFERENCE, SWIN, build, make_batch, total_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

GPU = "cuda"
# What each backbone changes in the configuration; {} is that of the tests.
BACKBONES: dict[str, dict[str, object]] = {
    "resnet": {},
    "swin": {**SWIN, "SWIN.DROP_PATH_RATE": 0.3},
    "timm": {"BACKBONE.NAME": "TimmBackbone", "TIMM.NORM": "BN"},
}


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def _waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that a graph is played."""
    played: list[None] = []
    replay = torch.cuda.CUDAGraph.replay

    def count(graph: torch.cuda.CUDAGraph) -> None:
        played.append(None)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", count)
    return played


@pytest.mark.parametrize("variant", INFERENCE)
def test_results_are_those_of_the_cpu(tiny_cfg: CfgNode, variant: str) -> None:
    model = build(tiny_cfg, INFERENCE[variant]).eval()
    with torch.no_grad():
        expected = model(make_batch())
        found = model.to(GPU)(make_batch())
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours["sem_seg"].cpu(), wanted["sem_seg"], atol=1e-3, rtol=0)
        assert (ours["panoptic_seg"][0].cpu() != wanted["panoptic_seg"][0]).float().mean() < 0.01
        assert len(ours["instances"]) == len(wanted["instances"]) > 0
        scores = [x["instances"].scores.sort().values.cpu() for x in (ours, wanted)]
        torch.testing.assert_close(*scores, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_of_training(tiny_cfg: CfgNode, dtype: torch.dtype) -> None:
    model = build(tiny_cfg, {}).train().to(GPU)
    with torch.autocast(GPU, dtype=dtype, enabled=dtype != torch.float32):
        loss = total_loss(model, make_batch())
    loss.backward()
    assert loss.isfinite()
    # In half precision they may overflow, for there is no scale here.
    assert dtype == torch.float16 or all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_by_graphs(tiny_cfg: CfgNode, dtype: torch.dtype, backbone: str) -> None:
    """Batches of two sizes, two of them to a step."""
    plain, graphed = (_trained(tiny_cfg, BACKBONES[backbone]) for _ in range(2))
    record_training_graphs(graphed)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for step in range(4):
        losses = []
        for model in (plain, graphed):
            torch.manual_seed(step)
            model.zero_grad()
            for batch in (make_batch(), make_batch()[1:]):
                with torch.autocast(GPU, dtype=dtype, enabled=dtype != torch.float32):
                    losses.append(1e-3 * total_loss(model, batch))  # float16 must not overflow
                losses[-1].backward()
        torch.testing.assert_close(losses[2:], losses[:2], atol=0, rtol=tolerance)
        expected, found = ({n: p.grad for n, p in x.named_parameters() if p.grad is not None} for x in (plain, graphed))
        assert found.keys() == expected.keys()
        least = max(gradient.norm() for gradient in expected.values()) / 50  # near float16's smallest numbers
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= tolerance * (gradient.norm() + least), name
        for (name, buffer), other in zip(plain.named_buffers(), graphed.buffers(), strict=True):  # of batch norms
            torch.testing.assert_close(other, buffer, atol=tolerance, rtol=tolerance, msg=name)
        optimizer.step()
        with torch.no_grad():  # the least difference would choose other random points
            for ours, theirs in zip(graphed.parameters(), plain.parameters(), strict=True):
                ours.copy_(theirs)
    assert len(graphed.run_network._recordings) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("static", [False, True])
def test_graphs_under_ddp(tiny_cfg: CfgNode, static: bool, tmp_path: Path) -> None:
    """Which holds on to what accumulates gradients, on a stream of its own."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        models = [_trained(tiny_cfg, {}) for _ in range(2)]
        record_training_graphs(models[1])
        parallel = [DistributedDataParallel(x, [0], broadcast_buffers=False, static_graph=static) for x in models]
        for step in range(4):
            for model in parallel:
                torch.manual_seed(step)
                model.zero_grad()
                if step > 1 and not static:
                    with model.no_sync():
                        total_loss(model, make_batch()[1:]).backward()
                total_loss(model, make_batch()).backward()
            for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
                assert (expected.grad is None) == (found.grad is None), name
                if expected.grad is not None and found.grad is not None:
                    assert (found.grad - expected.grad).norm() <= 1e-3 * (expected.grad.norm() + 1e-3), name
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_graphs_keep_what_they_read(tiny_cfg: CfgNode, backbone: str) -> None:
    """An evaluation of many sizes takes the place of the position encodings and masks that were kept."""
    plain, graphed = (_trained(tiny_cfg, {**BACKBONES[backbone], "SWIN.DROP_PATH_RATE": 0.0}) for _ in range(2))
    record_training_graphs(graphed)
    total_loss(graphed, make_batch()).backward()
    with torch.no_grad():
        for width in range(32, 32 * 24, 32):
            graphed.eval()([{"image": torch.rand(3, 64, width)}])
    graphed.train()
    torch.cuda.empty_cache()
    junk = [torch.full((size,), torch.nan, device=GPU) for size in (1000, 100_000, 10_000_000) for _ in range(30)]
    losses = []
    for model in (plain, graphed):
        torch.manual_seed(0)
        model.zero_grad()
        losses.append(total_loss(model, make_batch()))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=1e-4)
    assert all(x.isnan().all() for x in junk)
    assert len(graphed.run_network._recordings) == 1  # type: ignore[attr-defined]


def test_random_numbers_of_graphs(tiny_cfg: CfgNode) -> None:
    """Dropout draws from the generator, from which recording takes nothing."""
    model = _trained(tiny_cfg, {"MASK_FORMER.DROPOUT": 0.5})
    record_training_graphs(model)
    losses = []
    for seed in (0, 0, 1, 0):
        torch.manual_seed(seed)
        losses.append(total_loss(model, make_batch()))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[3], losses[0])
    assert abs(losses[2] - losses[0]) > 1e-3 * losses[0]


def test_a_network_that_waits_is_trained_without_graphs(tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    """And everything else goes on as before: random numbers, and graphs of other models."""
    model, other = (_trained(tiny_cfg, {}) for _ in range(2))
    forward = model.backbone.forward

    def waiting(images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = forward(images)
        assert features["res5"].sum().item() != 0
        return features

    model.backbone.forward = waiting
    losses = []
    for each in (model, other):
        record_training_graphs(each)
        torch.manual_seed(0)
        losses.append(total_loss(each, make_batch()))
        losses[-1].backward()
    assert caplog.text.count("no graph can be recorded of the network (the CPU waits for the GPU: ") == 1
    assert [len(x.run_network._recordings) for x in (model, other)] == [0, 1]  # type: ignore[attr-defined]
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=1e-4)


def _trained(cfg: CfgNode, changes: dict[str, object]) -> MaskFormer:
    return prepare_for_training(build(cfg, changes).train().to(GPU))  # type: ignore[return-value]


@pytest.mark.usefixtures("_waiting_is_an_error")
@pytest.mark.parametrize("optimised", [False, True])
def test_the_network_never_waits(tiny_cfg: CfgNode, optimised: bool) -> None:
    model = build(tiny_cfg, {}).eval().to(GPU)
    images = torch.randn(2, 3, 64, 96, device=GPU)
    with torch.no_grad():
        fast = optimize_for_inference(model) if optimised else model
        fast.run_network(images)  # position encodings may be made at the first image
        torch.cuda.set_sync_debug_mode("error")
        fast.run_network(images)


@pytest.mark.usefixtures("_waiting_is_an_error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_post_processing_waits_once(tiny_cfg: CfgNode, dtype: torch.dtype) -> None:
    """And gives what PyTorch's operators give."""
    model = build(tiny_cfg, {}).eval().to(GPU)
    with torch.no_grad():
        for prediction in model.predict_queries(make_batch()):
            prediction = replace(prediction, mask_logits=prediction.mask_logits.to(dtype))
            assert has_native_masks(prediction.mask_logits)
            torch.cuda.set_sync_debug_mode("default")  # which tells once in a process that it may miss some
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                found = model.postprocess(prediction)
                torch.cuda.set_sync_debug_mode("default")
            assert sum("called a synchronizing" in str(wait.message) for wait in waits) == 1
            on_cpu = {name: getattr(prediction, name).cpu() for name in ("class_logits", "mask_logits")}
            expected = model.postprocess(replace(prediction, **on_cpu))
            torch.testing.assert_close(found["sem_seg"].cpu(), expected["sem_seg"], atol=1e-4, rtol=0)
            assert (found["panoptic_seg"][0].cpu() != expected["panoptic_seg"][0]).float().mean() < 0.01
            scores = [x["instances"].scores.sort().values.cpu() for x in (found, expected)]
            torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_graphs_of_several_sizes(tiny_cfg: CfgNode) -> None:
    """Results stay when the next image is segmented, on whatever stream, and in inference mode or not."""
    model = build(tiny_cfg, {}).eval().to(GPU)
    fast = optimize_for_inference(model, compile_mode="reduce-overhead")
    pictures = [torch.randn(1, 3, *size, device=GPU) for size in ((64, 96), (32, 64), (64, 96), (32, 64))]
    found = []
    for number, images in enumerate(pictures):
        stream = torch.cuda.Stream() if number == 2 else torch.cuda.current_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(number % 2 == 0), torch.no_grad(), torch.cuda.stream(stream):
            found.append(fast.run_network(images))
    torch.cuda.synchronize()
    with torch.no_grad():
        for images, outputs in zip(pictures, found, strict=True):
            for name, expected in model.run_network(images).items():
                assert (outputs[name] - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_of_frequent_sizes(tiny_cfg: CfgNode, dtype: Dtype, backbone: str, replays: list[None]) -> None:
    """Also while position encodings and masks of other sizes take the place of those that a graph reads."""
    model = build(tiny_cfg, BACKBONES[backbone]).eval().to(GPU)
    plain, fast = (optimize_for_inference(model, dtype=dtype, cuda_graphs=x) for x in (False, True))
    with torch.no_grad():
        for number in range(3 * FREQUENT):
            for size in ((64, 96), (32, 64), (64, 32 * number + 128)):
                images = torch.randn(1, 3, *size, device=GPU)
                found = fast.run_network(images)
                for name, expected in plain.run_network(images).items():
                    assert (found[name] - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())
    assert len(replays) > 2 * FREQUENT
    images = torch.randn(1, 3, 64, 96, device=GPU)
    with torch.no_grad():
        replays.clear()
        with fast.backbone.register_forward_hook(lambda *_: None):
            fast.run_network(images)
        assert not replays
        fast.cpu().to(GPU)
        for _ in range(2 * FREQUENT):
            found = fast.run_network(images)["pred_logits"]
        expected = plain.run_network(images)["pred_logits"]
        assert (found - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())
        assert 0 < len(replays) < 2 * FREQUENT


@pytest.mark.parametrize("what", ["waits", "needs memory"])
def test_networks_that_cannot_be_recorded(
    tiny_cfg: CfgNode, what: str, replays: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    """They run as before, and so does everything else."""
    model = build(tiny_cfg, {}).eval().to(GPU)
    fast = optimize_for_inference(model)
    forward = fast.backbone.forward

    def awkward(images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = forward(images)
        if what == "waits":
            assert features["res5"].sum().item() != 0
        elif torch.cuda.is_current_stream_capturing():
            torch.empty(1 << 48, device=GPU)
        return features

    fast.backbone.forward = awkward
    images = torch.randn(1, 3, 64, 96, device=GPU)
    with torch.no_grad():
        expected = model.run_network(images)["pred_logits"]
        for _ in range(2 * FREQUENT):
            found = fast.run_network(images)["pred_logits"]
            assert (found - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    assert "No CUDA graph could be recorded" in caplog.text
    total_loss(model.train(), make_batch()).backward()
    other = optimize_for_inference(model.eval())
    with torch.no_grad():
        for _ in range(2 * FREQUENT):
            other.run_network(images)
    assert replays


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
@pytest.mark.parametrize("compile_mode", ["none", "default", "reduce-overhead"])
def test_faster_models_give_the_same(tiny_cfg: CfgNode, dtype: str, tolerance: float, compile_mode: str) -> None:
    model = build(tiny_cfg, {}).eval().to(GPU)
    fast = optimize_for_inference(model, dtype=dtype, compile_mode=compile_mode)
    images = torch.randn(1, 3, 64, 96, device=GPU)
    with torch.no_grad():
        expected = model.run_network(images)["pred_logits"]
        for _ in range(3):  # the third time a CUDA graph is replayed
            found = fast.run_network(images)["pred_logits"].float()
        assert (found - expected).abs().max() <= tolerance * (expected.max() - expected.min())
