"""Parameters and operations: fvcore's count, sums by hand, and the paper's tables."""

import json
from pathlib import Path
from typing import Any

import analyze_model
import fvcore.nn
import pytest
import torch
from analyze_model import COCO_SIZE, build_without_weights, count_operations, count_parameters
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
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


def _fvcore_attention(inputs: Any, outputs: Any) -> float:
    query, key = (value.type().sizes() for value in inputs[:2])
    return 2 * query[0] * query[1] * query[2] * query[3] * key[2]


@pytest.mark.filterwarnings("ignore")
def test_operations_are_fvcores() -> None:
    cfg = _config("ablations/fpn.yaml")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 0
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 4
    model = build_model(cfg).eval()
    analysis = fvcore.nn.FlopCountAnalysis(_Network(model), torch.zeros(1, 3, 64, 96))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _fvcore_attention)
    analysis.set_op_handle("aten::batch_norm", None)
    expected = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    assert _total(model, (64, 96)) == pytest.approx(expected, rel=1e-3)
    assert _total(build_without_weights(cfg), (64, 96)) == pytest.approx(_total(model, (64, 96)), rel=1e-6)


def test_deformable_attention_is_one_operator() -> None:
    module = MSDeformAttn(embed_dim=16, num_levels=2, num_heads=4, num_points=3)
    shapes, pixels = [(4, 6), (2, 3)], 30
    query = torch.zeros(1, pixels, 16)
    with analyze_model._deformable_attention_as_one_operator(), analyze_model._counter() as counter:
        module(query, torch.zeros(1, pixels, 1, 2), query, shapes)
    counts = analyze_model._by_operator(counter)
    # A sample a query, head, level and point; four neighbours and one weight for each of four channels.
    assert counts["mask2former_analysis.deformable_attention"] == pixels * 4 * 2 * 3 * 4 * 5
    assert sum(counts.values()) == 720 * 20 + pixels * 16 * (16 + 16 + 4 * 2 * 3 * 3)


def test_deformable_convolution_counts_its_samples() -> None:
    counter: FlopCounterMode = analyze_model._counter()
    with counter:
        deform_conv2d(
            torch.zeros(1, 4, 5, 6),
            torch.zeros(1, 18, 5, 6),
            torch.zeros(8, 4, 3, 3),
            padding=1,
            mask=torch.zeros(1, 9, 5, 6),
        )
    assert sum(analyze_model._by_operator(counter).values()) == 30 * 9 * 4 * 8 + 30 * 9 * 4 * 5


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs" / "ablations" / "single_scale_32.yaml")
    monkeypatch.setattr("sys.argv", ["analyze_model.py", "--config-file", config, "--size", "64", "96", "--details"])
    analyze_model.main()
    printed = capsys.readouterr().out
    assert "parameters: 44.0 M" in printed
    assert "FLOPs at 64 x 96, as the paper counts:" in printed
    assert "mask2former_analysis.deformable_attention" in printed
