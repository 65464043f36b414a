"""The official release's results, from deterministic weights (shared/contract)."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former import add_maskformer2_config

CASES = ["r50_panoptic", "swin_t_semantic"]


def _seeded(contract_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", contract_dir / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_cfg(repository: Path, config: str, options: list[Any]) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(repository / "configs" / config), allow_unsafe=False)
    cfg.merge_from_list([*options, "MODEL.DEVICE", "cpu"])
    return cfg


def _seeded_model(cfg: CfgNode, seeded: ModuleType) -> nn.Module:
    model = build_model(cfg).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing = model.load_state_dict(seeded.seeded_state_dict(shapes), strict=False).missing_keys
    assert all(name.endswith(("empty_weight", "relative_position_index")) for name in missing)
    return model


def _assert_within_range(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-4) -> None:
    """Largest difference relative to the range of the expected values."""
    expected_tensor = torch.from_numpy(np.asarray(expected)).float()
    assert actual.shape == expected_tensor.shape
    span = expected_tensor.max() - expected_tensor.min()
    assert (actual.float() - expected_tensor).abs().max() < tolerance * span


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, contract_dir: Path, repository: Path) -> dict[str, Any]:
    """Expected and computed results of one golden case."""
    expected = np.load(contract_dir / "golden" / f"{request.param}.npz")
    meta = json.loads(str(expected["meta"]))
    seeded = _seeded(contract_dir)
    model = _seeded_model(_load_cfg(repository, meta["config"], meta["opts"]), seeded)
    image = seeded.seeded_image(request.param, *meta["image"])
    height, width = meta["output"]
    with torch.no_grad():
        features = model.backbone(model._normalise_and_pad([{"image": image}]).tensor)
        mask_features, _, multi_scale = model.sem_seg_head.pixel_decoder.forward_features(features)
        model.sem_seg_head.predictor.train()  # for the auxiliary predictions
        predictions = model.sem_seg_head.predictor(multi_scale, mask_features)
        model.eval()
        result = model([{"image": image, "height": height, "width": width}])[0]
    return {
        "expected": expected,
        "meta": meta,
        "mask_features": mask_features,
        "multi_scale": multi_scale,
        "predictions": predictions,
        "result": result,
    }


def test_pixel_decoder(case: dict[str, Any]) -> None:
    for index, feature in enumerate(case["multi_scale"]):
        _assert_within_range(feature[0, :, ::4, ::4], case["expected"][f"multi_scale_{index}"])
    _assert_within_range(case["mask_features"][0, :, ::16, ::16], case["expected"]["mask_features_corner"])


def test_every_prediction(case: dict[str, Any]) -> None:
    expected, predictions = case["expected"], case["predictions"]
    _assert_within_range(predictions["pred_logits"][0], expected["pred_logits"])
    _assert_within_range(predictions["pred_masks"][0], expected["pred_masks"])
    assert len(predictions["aux_outputs"]) == len(expected["aux_pred_logits"]) == 9
    for index, auxiliary in enumerate(predictions["aux_outputs"]):
        _assert_within_range(auxiliary["pred_logits"][0], expected["aux_pred_logits"][index])
        _assert_within_range(auxiliary["pred_masks"][0, :, ::8, ::8], expected["aux_pred_masks_sub"][index])


def test_semantic_result(case: dict[str, Any]) -> None:
    scores = case["result"]["sem_seg"]
    assert np.array_equal(scores.argmax(0).numpy(), case["expected"]["sem_seg_argmax"])
    _assert_within_range(scores[:, ::8, ::8], case["expected"]["sem_seg_sub"])


def test_panoptic_and_instance_results(case: dict[str, Any]) -> None:
    expected, result = case["expected"], case["result"]
    if "panoptic_seg" not in expected:
        assert set(result) == {"sem_seg"}
        return
    ids, segments = result["panoptic_seg"]
    different = ids.numpy() != expected["panoptic_seg"]
    assert not (different & ~_undecided_pixels(case)).any()
    assert segments == json.loads(str(expected["segments_info"]))

    instances = result["instances"]
    assert np.array_equal(instances.pred_classes.numpy(), expected["inst_classes"])
    _assert_within_range(instances.scores, expected["inst_scores"])
    masks = np.unpackbits(expected["inst_masks_packed"], axis=1).astype(bool)
    # Rounding may move a pixel whose logit is next to 0 across it: at most one in 100 000.
    assert (instances.pred_masks.flatten(1).numpy() != masks).mean() < 1e-5


def _undecided_pixels(case: dict[str, Any]) -> np.ndarray:
    """Where two queries are equally good up to float32's rounding of a whole network, so that it decides: (H, W)."""
    image_size, output_size = case["meta"]["image"], case["meta"]["output"]
    predictions = case["predictions"]
    scores, labels = predictions["pred_logits"][0].softmax(-1).max(-1)
    queries = labels != predictions["pred_logits"].shape[-1] - 1
    padded = [-(-length // 32) * 32 for length in image_size]
    masks = F.interpolate(predictions["pred_masks"][:, queries], padded, mode="bilinear")
    masks = F.interpolate(masks[..., : image_size[0], : image_size[1]], output_size, mode="bilinear")[0]
    best, second = (scores[queries, None, None] * masks.sigmoid()).topk(2, dim=0).values
    undecided = best - second < 1e-5
    assert undecided.float().mean() < 0.005, "the comparison of the other pixels is what counts"
    return undecided.numpy()


def test_loss_terms_within_three_standard_errors(contract_dir: Path, repository: Path) -> None:
    golden = json.loads((contract_dir / "golden" / "r50_panoptic_loss.json").read_text())
    meta = golden["meta"]
    seeded = _seeded(contract_dir)
    model = _seeded_model(_load_cfg(repository, meta["config"], []), seeded).train()
    labels, masks = seeded.seeded_targets(meta["case"], *meta["image"], meta["instances"], meta["num_classes"])
    image = seeded.seeded_image(meta["case"], *meta["image"])
    draws: dict[str, list[float]] = {}
    count = 24
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(model._normalise_and_pad([{"image": image}]).tensor))
        for draw in range(count):
            torch.manual_seed(draw)
            for name, value in model.criterion(outputs, [{"labels": labels, "masks": masks}]).items():
                draws.setdefault(name, []).append(float(value))
    assert set(draws) == set(golden["mean"])
    for name, values in draws.items():
        # Standard error of the difference of two sample means; the expected ones are rounded to five decimals.
        error = np.sqrt(np.var(values) / count + golden["std"][name] ** 2 / meta["draws"])
        assert abs(np.mean(values) - golden["mean"][name]) < 3 * error + 2e-5, name
