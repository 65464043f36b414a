"""The example without PyTorch: that it runs without, and that it gives what the model gives."""

import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from mask2former.export import ExportGraph, ExportInfo, PostProcessing, export_graph
from mask2former.image_io import read_image
from mask2former.modeling import MaskFormer
from tests.export.conftest import build  # noqa: F401  a fixture
from tests.export.test_formats import _OneConvolution

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_inference.py"
Build = Callable[[str], tuple[CfgNode, MaskFormer]]

# Runs the example in a Python in which nothing of PyTorch can be imported.
WITHOUT_TORCH = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "mask2former", "cv2"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_inference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((150, 97)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


class _Head(torch.nn.Module):
    """What ``MaskFormer`` asks of a head."""

    def __init__(self, network: torch.nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(("pred_logits", "pred_masks"), self.network(images), strict=True))


@pytest.fixture
def exported(build: Build, tmp_path: Path) -> Callable[[PostProcessing], tuple[CfgNode, MaskFormer, Path]]:  # noqa: F811
    """A model that is quickly exported, with everything but the network as usual."""

    def _exported(postprocessing: PostProcessing) -> tuple[CfgNode, MaskFormer, Path]:
        cfg, model = build("resnet")
        cfg.INPUT.MIN_SIZE_TEST = 80
        model.object_mask_threshold, model.overlap_threshold = 0.3, 0.1
        model.semantic_on = True
        model.backbone = torch.nn.Identity()
        model.sem_seg_head = _Head(_OneConvolution(20, 3), 3)
        path = tmp_path / f"{postprocessing}.onnx"
        info = ExportInfo.from_config(
            cfg, model, postprocessing=postprocessing, input_type="uint8", precision="float32"
        )
        export_graph(ExportGraph(model, postprocessing), path, "onnx", info)
        return cfg, model, path

    return _exported


def _eager(cfg: CfgNode, model: MaskFormer, picture: Path) -> dict:
    from mask2former.data.augmentation import build_test_augmentations

    pixels = np.asarray(Image.open(picture).convert("RGB"))[:, :, ::-1]
    height, width = pixels.shape[:2]
    transform = build_test_augmentations(cfg)[0].get_transform(pixels)
    resized = np.ascontiguousarray(transform.apply_image(pixels).transpose(2, 0, 1))
    with torch.no_grad():
        return model([{"image": torch.from_numpy(resized), "height": height, "width": width}])[0]


@pytest.mark.timeout(1800)
def test_panoptic_in_numpy_is_the_models(example: ModuleType, exported: Callable, picture: Path) -> None:
    cfg, model, path = exported("none")
    ids, segments = example.Segmenter(path)(Image.open(picture))
    expected_ids, expected_segments = _eager(cfg, model, picture)["panoptic_seg"]
    assert len(expected_segments) > 1
    assert (ids != expected_ids.numpy()).mean() < 1e-3
    assert [(s["id"], s["class"]) for s in segments] == [(s["id"], str(s["category_id"])) for s in expected_segments]
    assert [s["area"] for s in segments] == [(ids == s["id"]).sum() for s in segments]


@pytest.mark.timeout(1800)
def test_semantic_is_the_models_but_for_seams(example: ModuleType, exported: Callable, picture: Path) -> None:
    cfg, model, path = exported("semantic")
    ids, segments = example.Segmenter(path)(Image.open(picture))
    expected = _eager(cfg, model, picture)["sem_seg"].argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    # The class scores are resized, not the masks that they are made of.
    assert (ids - 1 != expected).mean() < 0.02
    assert {s["class"] for s in segments} == {str(c) for c in np.unique(ids - 1)}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("postprocessing", ["panoptic", "instance"])
def test_runs_without_pytorch(
    postprocessing: PostProcessing, exported: Callable, picture: Path, tmp_path: Path
) -> None:
    *_, path = exported(postprocessing)
    arguments = [str(SCRIPT), str(path), str(picture), "--output", str(tmp_path / "out"), "--threshold", "0.05"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    segments = json.loads((tmp_path / "out/picture.json").read_text())
    assert segments
    assert all(segment["class"] in ("0", "1", "2") and 0 < segment["score"] <= 1 for segment in segments)
    drawn, plain = (np.asarray(Image.open(p).convert("RGB")) for p in (tmp_path / "out/picture.png", picture))
    assert drawn.shape == plain.shape
    changed = (drawn != plain).any(-1).sum()
    assert changed == pytest.approx(sum(segment["area"] for segment in segments), rel=0.02)


@pytest.mark.timeout(1800)
def test_large_logits_and_tiles(example: ModuleType, exported: Callable, picture: Path) -> None:
    """No overflow, and a word about tiles, which a graph does not cut, and about regions, which it does not split."""
    *_, path = exported("none")
    segmenter = example.Segmenter(path)
    assert "tile_size" in segmenter.info
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = np.array([[9.0, 0.0, 0.0, 0.0]], np.float32)
        masks = np.full((1, 4, 4), -1000.0, np.float32)
        masks[:, :2] = 1000.0
        ids, _ = segmenter._finish_none({"pred_logits": logits, "pred_masks": masks}, (32, 32), (32, 32))
        assert ids[0].all()
        assert not ids[-1].any()
    segmenter.info["tile_size"] = 32
    with pytest.warns(UserWarning, match="used in tiles of 32 pixels, .* does not cut; of a picture of 124 x 80"):
        segmenter(Image.open(picture))
    segmenter.info |= {"tile_size": 0, "split_disconnected_things": True}
    with pytest.warns(UserWarning, match="an instance of each connected region .* which this example does not; the"):
        segmenter(Image.open(picture))


def test_pictures_are_read_as_elsewhere(example: ModuleType, tmp_path: Path) -> None:
    deep = (np.arange(40 * 30).reshape(40, 30) * 3 + 100).astype(np.uint16)  # 12 bits in 16
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((deep >> 4).astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    floats = deep.astype(np.float32)
    floats[3, :9], floats[4, 0] = np.nan, -np.inf
    Image.fromarray(floats).save(tmp_path / "floats.tif")
    for name in ("deep.tif", "turned.png", "floats.tif"):
        found = np.asarray(example.read_picture(tmp_path / name).convert("RGB"))
        np.testing.assert_array_equal(found, read_image(tmp_path / name))


@pytest.mark.timeout(1800)
def test_damaged_pictures_are_left_out(
    example: ModuleType,
    exported: Callable,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    *_, path = exported("none")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture.read_bytes()[:200])
    monkeypatch.setattr(sys, "argv", ["x", str(path), str(damaged), str(picture), "--output", str(tmp_path / "out")])
    assert example.main() == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {damaged}: cannot be read (")
    assert captured.out.startswith(f"{picture}: ")


@pytest.mark.parametrize(("pictures", "output"), [(["a.png"], "."), (["a.jpg", "b/a.png"], "out")])
def test_nothing_is_overwritten(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: list[str],
    output: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", "model.onnx", *pictures, "--output", output])
    with pytest.raises(SystemExit):
        example.main()
    assert "a drawing would overwrite a picture or another drawing" in capsys.readouterr().err


def test_a_file_that_does_not_describe_itself(example: ModuleType, tmp_path: Path) -> None:
    import onnx

    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", value[:1], value[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"foreign.onnx was not written by tools/export_model.py"):
        example.Segmenter(tmp_path / "foreign.onnx")
