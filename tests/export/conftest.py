"""Models to export, and pictures of sizes other than the one that is recorded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from mask2former.engine import load_config
from mask2former.export import ExportFormat, ExportGraph, ExportInfo, PostProcessing, export_graph
from mask2former.inference.weights import load_whole_model
from mask2former.modeling import MaskFormer
from tests.modeling.conftest import make_tiny_cfg

REPOSITORY = Path(__file__).parents[2]
Export = Callable[..., Path]


def _resnet() -> CfgNode:
    return make_tiny_cfg()


def _swin() -> CfgNode:
    cfg = make_tiny_cfg()
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.EMBED_DIM = 24
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 1, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 4, 8]
    return cfg


def _maskformer() -> CfgNode:
    """The older structure."""
    cfg = make_tiny_cfg()
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "transformer_encoder"
    return cfg


def _load(config: str, weights: str = "") -> CfgNode:
    return load_config(str(REPOSITORY / "configs" / config), ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"])


def _r50() -> CfgNode:
    return _load("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")


def _swin_t() -> CfgNode:
    return _load("coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml")


def _nuclei() -> CfgNode:
    """The model that comes with the repository."""
    pytest.importorskip("timm")
    return _load("examples/nuclei_panoptic_lite0.yaml", str(REPOSITORY / "model_zoo/nuclei_panoptic_lite0.pth"))


_CONFIGS = {
    "resnet": _resnet,
    "swin": _swin,
    "maskformer": _maskformer,
    "R50": _r50,
    "Swin-T": _swin_t,
    "nuclei": _nuclei,
}


@pytest.fixture(scope="session")
def build() -> Callable[[str], tuple[CfgNode, MaskFormer]]:
    """A model in evaluation mode with its configuration, always with the same weights.

    "resnet", "swin" and "maskformer" are small, "R50" and "Swin-T" official configurations with random weights,
    "nuclei" is trained.
    """

    def _build(kind: str) -> tuple[CfgNode, MaskFormer]:
        cfg = _CONFIGS[kind]()
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        return cfg, load_whole_model(model, cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else model

    return _build


@pytest.fixture(scope="session")
def export(build: Callable[[str], tuple[CfgNode, MaskFormer]], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a model by its kind; every file is written once."""
    files: dict[tuple, Path] = {}

    def _export(
        kind: str, export_format: ExportFormat, postprocessing: PostProcessing = "none", *, half: bool = False
    ) -> Path:
        key = (kind, export_format, postprocessing, half)
        if key not in files:
            cfg, model = build(kind)
            precision = "float16" if half else "float32"
            info = ExportInfo.from_config(
                cfg, model, postprocessing=postprocessing, input_type="uint8", precision=precision
            )
            name = "model.onnx" if export_format == "onnx" else "model.pt2"
            path = tmp_path_factory.mktemp("export") / name
            export_graph(ExportGraph(model, postprocessing, half=half), path, export_format, info)
            files[key] = path
        return files[key]

    return _export


@pytest.fixture
def batches() -> list[Tensor]:
    """Smooth pictures, (N, 3, H, W) uint8, of neither the recorded batch nor the recorded size."""
    shapes = [(3, 3, 161, 70), (1, 3, 64, 128)]
    noise = [torch.rand(*shape[:2], shape[2] // 16, shape[3] // 16) for shape in shapes]
    return [
        (torch.nn.functional.interpolate(x, shape[2:], mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
        for x, shape in zip(noise, shapes, strict=True)
    ]
