"""Parameters and operations: fvcore's count, sums by hand, and the paper's tables."""

import json
import math
from pathlib import Path
from typing import Any

import analyze_model
import fake_models
import fvcore.nn
import model_counts
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from fake_models import COCO_SIZE, build_without_weights
from model_counts import count_activations, count_operations, count_parameters
from model_memory import measure_memory
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from mask2former import add_maskformer2_config
from mask2former.ops import MSDeformAttn

REPOSITORY = Path(__file__).parents[2]
TABLES: dict[str, Any] = json.loads((REPOSITORY / "tools" / "ablations.json").read_text())
PUBLISHED = {
    f"ablations/{row['config']}.yaml": row["GFLOPs"]
    for table in TABLES.values()
    for row in table["rows"]
    if "GFLOPs" in row
} | {
    "coco/instance-segmentation/maskformer2_R101_bs16_50ep.yaml": 293,
    "coco/panoptic-segmentation/maskformer_v1/maskformer_panoptic_R50_bs64_554k.yaml": 181,
    "coco/instance-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml": 868,
    "coco/panoptic-segmentation/maskformer_v1/swin/maskformer_panoptic_swin_large_IN21k_384_bs64_554k.yaml": 792,
}


def _config(name: str) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "configs" / name), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def _total(model: nn.Module, size: tuple[int, int], as_published: bool = False) -> float:
    return sum(count_operations(model, size, as_published)["total"].values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_are_the_papers_within_3_percent(name: str) -> None:
    model = build_without_weights(_config(name))
    assert _total(model, COCO_SIZE, as_published=True) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.03)


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml", 44, 226),
        ("coco/instance-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml", 216, 868),
    ],
)
def test_the_papers_main_models_within_2_percent(name: str, millions: int, giga: int) -> None:
    model = build_without_weights(_config(name))
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.02)
    assert _total(model, COCO_SIZE, as_published=True) / 1e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.parametrize(
    "name", sorted({f"ablations/{path.name}" for path in (REPOSITORY / "configs" / "ablations").glob("*.yaml")})
)
def test_every_row_can_be_built(name: str) -> None:
    with torch.device("meta"):
        assert count_parameters(META_ARCH_REGISTRY.get("MaskFormer")(_config(name))) > 40e6


def test_parameters_and_what_it_costs_as_it_runs() -> None:
    model = build_without_weights(_config("ablations/mask2former.yaml"))
    assert count_parameters(model) / 1e6 == pytest.approx(44, abs=0.5)
    # Nine products of (100, 256) and (256, 200 * 280) less, and the same at the scales that layers read.
    saved = 9 * 100 * 256 * 200 * 280
    assert _total(model, COCO_SIZE, as_published=True) - _total(model, COCO_SIZE) == pytest.approx(saved, rel=0.01)


class _Network(nn.Module):
    """A tensor in, tensors out, as tracing wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.head(self.backbone(images))
        return outputs["pred_logits"], outputs["pred_masks"]


def _small_config() -> CfgNode:
    cfg = _config("ablations/fpn.yaml")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 0
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 4
    return cfg


def _fvcore_attention(inputs: Any, outputs: Any) -> float:
    query, key = (value.type().sizes() for value in inputs[:2])
    return 2 * query[0] * query[1] * query[2] * query[3] * key[2]


@pytest.mark.filterwarnings("ignore")
def test_operations_are_fvcores() -> None:
    cfg = _small_config()
    model = build_model(cfg).eval()
    analysis = fvcore.nn.FlopCountAnalysis(_Network(model), torch.zeros(1, 3, 64, 96))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _fvcore_attention)
    analysis.set_op_handle("aten::batch_norm", None)
    expected = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    assert _total(model, (64, 96)) == pytest.approx(expected, rel=1e-3)
    assert _total(build_without_weights(cfg), (64, 96)) == pytest.approx(_total(model, (64, 96)), rel=1e-6)


def test_native_operators_change_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _small_config()
    cfg.MODEL.MASK_FORMER.NHEADS = cfg.MODEL.MASK_FORMER.HIDDEN_DIM // 32 or 1
    with torch.no_grad():
        counted = _total(build_without_weights(cfg), (256, 512))  # scales with more rows than PyTorch multiplies
        monkeypatch.setattr("mask2former.ops._library._is_loaded", False)
        assert _total(build_without_weights(cfg), (256, 512)) == counted


def test_deformable_attention_is_one_operator() -> None:
    module = MSDeformAttn(embed_dim=16, num_levels=2, num_heads=4, num_points=3)
    shapes, pixels = [(4, 6), (2, 3)], 30
    query = torch.zeros(1, pixels, 16)
    with fake_models._deformable_attention_as_one_operator(), model_counts._counter() as counter:
        module(query, torch.zeros(1, pixels, 1, 2), query, shapes)
    counts = model_counts._by_operator(counter)
    # A sample a query, head, level and point; four neighbours and one weight for each of four channels.
    assert counts["mask2former_analysis.deformable_attention"] == pixels * 4 * 2 * 3 * 4 * 5
    assert sum(counts.values()) == 720 * 20 + pixels * 16 * (16 + 16 + 4 * 2 * 3 * 3)


def test_deformable_convolution_counts_its_samples() -> None:
    counter: FlopCounterMode = model_counts._counter()
    with counter:
        deform_conv2d(
            torch.zeros(1, 4, 5, 6),
            torch.zeros(1, 18, 5, 6),
            torch.zeros(8, 4, 3, 3),
            padding=1,
            mask=torch.zeros(1, 9, 5, 6),
        )
    assert sum(model_counts._by_operator(counter).values()) == 30 * 9 * 4 * 8 + 30 * 9 * 4 * 5


@pytest.mark.filterwarnings("ignore")
def test_activations_are_fvcores() -> None:
    cfg = _small_config()
    model = build_model(cfg).eval()
    analysis = fvcore.nn.ActivationCountAnalysis(_Network(model), torch.zeros(1, 3, 64, 96))
    analysis.set_op_handle(
        "aten::scaled_dot_product_attention", lambda _, outputs: math.prod(outputs[0].type().sizes())
    )
    expected = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    assert sum(count_activations(model, (64, 96))["total"].values()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["per_pixel_baseline", "per_pixel_baseline_plus", "maskformer"])
def test_older_models(name: str) -> None:
    model = build_without_weights(_config(f"ade20k/semantic-segmentation/maskformer_v1/{name}_R50_bs16_160k.yaml"))
    counts = count_operations(model, (64, 96))
    assert list(counts) == ["total", "backbone", "pixel_decoder", "predictor"]
    assert all(sum(part.values()) > 0 for part in counts.values())
    assert measure_memory(model, (64, 96)).saved > 0


class _Chain(nn.Module):
    """A model whose memory is known by heart: every tensor has 4 KiB, and convolutions keep their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*(nn.Conv2d(c, 4, 1, bias=False) for c in (3, 4, 4)))
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.Conv2d(4, 4, 1, bias=False)
        self.sem_seg_head.pixel_decoder = nn.Identity()
        self.sem_seg_head.pixel_decoder.forward_features = lambda features: features
        self.sem_seg_head.forward = self.sem_seg_head.predictor.forward


def test_memory_of_a_chain() -> None:
    memory = measure_memory(_Chain(), (16, 16))
    image, feature = 3 * 16 * 16 * 4, 4 * 16 * 16 * 4
    parameters = (3 + 4 + 4 + 4) * 4 * 4
    assert memory.weights == parameters
    # The image lives all the time, and besides it what goes in and comes out.
    assert memory.inference == image + 2 * feature
    assert memory.saved == image + 4 * feature
    assert memory.optimizer == 3 * parameters
    assert memory.training == 4 * parameters + image + 4 * feature


def test_memory_without_values_is_that_of_a_real_model() -> None:
    cfg = _small_config()
    torch.manual_seed(0)
    real = measure_memory(build_model(cfg), (64, 96))
    fake = measure_memory(build_without_weights(cfg), (64, 96))
    assert fake == real


def test_peak_is_what_pytorch_allocates() -> None:
    model = build_model(_small_config()).eval()
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiler:
        fake_models.run_model(model, (64, 96))
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert measure_memory(model, (64, 96)).inference == pytest.approx(peak, rel=0.1)


def test_structure() -> None:
    model = build_without_weights(_config("ablations/mask2former.yaml"))
    lines = list(analyze_model.report_structure(model, (64, 96), depth=2))
    assert lines[0].split()[:2] == ["MaskFormer", "MaskFormer"]
    (backbone,) = [line for line in lines if line.startswith("  backbone ")]
    assert backbone.split()[:3] == ["backbone", "ResNet", f"{count_parameters(model.backbone):,}"]
    assert backbone.endswith("(1, 256, 16, 24), (1, 512, 8, 12), (1, 1024, 4, 6), (1, 2048, 2, 3)")
    assert any(line.startswith("    predictor ") and "(1, 100, 81)" in line for line in lines)
    assert not any(line.startswith("      ") for line in lines)


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs" / "ablations" / "single_scale_32.yaml")
    words = ["--config-file", config, "--size", "64", "96", "--details"]
    monkeypatch.setattr("sys.argv", ["analyze_model.py", *words])
    analyze_model.main()
    printed = capsys.readouterr().out
    assert "parameters: 44.0 M (backbone 23.5, pixel_decoder 6.0, predictor 14.5)" in printed
    assert "activations at 64 x 96: " in printed
    assert "memory at 64 x 96, training: " in printed
    assert "memory at 64 x 96, inference: " in printed
    assert "FLOPs at 64 x 96, as the paper counts:" in printed
    assert "mask2former_analysis.deformable_attention" in printed
